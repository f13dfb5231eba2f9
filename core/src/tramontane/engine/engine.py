"""The engine: one a model, one thread, one step after another."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from tramontane.engine.block_manager import BlockManager
from tramontane.engine.failures import (
    chained,
    forward_error,
    is_out_of_memory,
    release_frames,
)
from tramontane.engine.limits import Limits
from tramontane.engine.mailbox import Mailbox
from tramontane.engine.metrics import Metrics
from tramontane.engine.output import FinishReason, OutputQueue
from tramontane.engine.scheduler import Scheduler, Step
from tramontane.engine.sequence import Sequence, Status
from tramontane.errors import EngineClosedError, EngineError, ValidationError
from tramontane.protocols.executor import Executor
from tramontane.sampling.constraint import Constraint
from tramontane.sampling.params import SamplingParams
from tramontane.sampling.sampler import SampledToken, Sampler
from tramontane.text.tokenizer import Tokenizer

_log = logging.getLogger(__name__)


class Engine:
    """Generates for many requests at once.

    A daemon thread owns executor and scheduler. While it has nothing to do it holds no strong
    reference to the engine, so one that is simply dropped ends like one that is closed.

    Args:
        executor: runs the forwards; the engine closes it.
        tokenizer: for sequences made with `sequence`.
        eos_token_ids: tokens that end a sequence.
        max_seq_len: tokens of context the model was made for.
        max_seqs: sequences that may run at once.
        max_step_tokens: tokens a step may compute; more makes prompts faster, and steps, which
            everybody waits for, longer. Must exceed ``max_seqs``. Default: 512, or twice
            ``max_seqs`` if that is more.
        prefix_cache: True to keep the blocks of finished sequences as long as there is room, a
            number to keep those of that many sequences, False, None or 0 for no sharing. There is
            none for a recurrent model: its state after a prefix is not kept.
        no_kv_cache: compute the whole sequence anew in each step.
        block_size: tokens a KV block; the executor's.
        seed: makes sampling without a seed of its own repeatable, by order of `sequence` calls.
        vocab_size: rows of the embedding, to refuse prompts with ids beyond; None not to check.
        regime: digest of what the keys of a sequence of so many tokens depend on beside them.
        switch_len: tokens after which that changes, so that a sequence which grows past them is
            computed anew; None where it never does.

    Attributes:
        max_seq_len: tokens of the longest sequence served: the model's context, or what the
            cache holds if that is less.
    """

    def __init__(
        self,
        executor: Executor,
        *,
        tokenizer: Tokenizer,
        eos_token_ids: Iterable[int],
        max_seq_len: int,
        max_seqs: int = 16,
        max_step_tokens: int | None = None,
        prefix_cache: bool | int | None = True,
        no_kv_cache: bool = False,
        block_size: int = 32,
        seed: int | None = None,
        vocab_size: int | None = None,
        regime: Callable[[int], bytes] | None = None,
        switch_len: int | None = None,
    ) -> None:
        if max_seqs < 1:
            raise ValidationError(f"max_seqs must be at least 1, not {max_seqs}.")
        if max_step_tokens is None:
            max_step_tokens = max(512, 2 * max_seqs)
        elif max_step_tokens <= max_seqs:
            raise ValidationError(
                f"max_step_tokens ({max_step_tokens}) must exceed max_seqs ({max_seqs}): every "
                "running sequence takes one token a step, and prompts need the rest."
            )
        self._limits = Limits(max_seq_len, executor.num_blocks, block_size, vocab_size)
        self.max_seq_len = self._limits.max_seq_len
        self._executor = executor
        self._tokenizer = tokenizer
        self._eos_token_ids = frozenset(eos_token_ids)
        self._regime = regime or (lambda num_tokens: b"")
        self._switch_len = None if no_kv_cache else switch_len
        self._max_seqs = max_seqs
        self._max_step_tokens = max_step_tokens
        self._recurrent = executor.recurrent
        self._prefix_cache = 0 if no_kv_cache or self._recurrent else prefix_cache or 0
        self._no_kv_cache = no_kv_cache
        self._block_size = block_size
        self._sampler = Sampler()
        self._metrics = Metrics()
        self._scheduler = self._new_scheduler()
        self._seeds = None if seed is None else torch.Generator().manual_seed(seed)
        self._seeds_lock = threading.Lock()
        self._forward_done = 0.0

        self._mailbox = Mailbox()
        self._thread = threading.Thread(
            target=_serve,
            args=(weakref.ref(self), self._mailbox),
            name="tramontane-engine",
            daemon=True,
        )
        self._thread.start()
        # Also runs at interpreter exit, so that no forward is cut off half-way.
        self._closer = weakref.finalize(self, _close, self._mailbox, self._thread)

    def sequence(
        self,
        prompt_ids: list[int],
        params: SamplingParams,
        *,
        output: OutputQueue | None = None,
        index: int = 0,
        ignore_eos: bool = False,
        cache_root: bytes = b"",
        new_text: bool = False,
        shown: frozenset[int] = frozenset(),
        constraint: Constraint | None = None,
    ) -> Sequence:
        """Make a sequence for `submit`; see `Sequence`. Choices of one request that states a seed
        differ by ``index``."""
        seed = params.seed
        if seed is not None:
            seed += index
        elif self._seeds is not None:
            with self._seeds_lock:
                seed = int(torch.randint(2**62, (), generator=self._seeds))
        return Sequence.of(
            self._tokenizer,
            prompt_ids,
            params,
            output=output,
            index=index,
            seed=seed,
            ignore_eos=ignore_eos,
            cache_root=cache_root,
            regime=self._regime(len(prompt_ids)),
            new_text=new_text,
            shown=shown,
            constraint=constraint,
        )

    def submit(self, seqs: Iterable[Sequence]) -> None:
        """Queue sequences, all or none. Thread-safe; returns at once.

        Raises:
            ValidationError: one of them can never run.
            EngineClosedError: the engine has been closed.
        """
        seqs = list(seqs)
        for seq in seqs:
            self._limits.check(seq)
            self._scheduler.blocks.hash_prompt(seq)
        self._mailbox.submit(seqs)

    def cancel(self, seqs: Iterable[Sequence]) -> None:
        """End sequences within the current step, with what they have (``"canceled"``). Thread-safe;
        returns at once; finished ones are left alone."""
        seqs = [seq for seq in seqs if seq.status is not Status.FINISHED]
        for seq in seqs:
            seq.canceled = True
        self._mailbox.cancel(seqs)

    def forget(self) -> None:
        """Drop what finished sequences left in the cache, because the model has changed. Only
        while nothing is running or waiting."""
        assert not self._scheduler.has_work
        self._scheduler = self._new_scheduler()

    def close(self) -> None:
        """End the thread and free weights and cache. What is still going on ends with
        `EngineClosedError`. Waits for the current step; safe to call twice, from anywhere."""
        self._closer()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    @property
    def closed(self) -> bool:
        return self._mailbox.closed

    def stats(self) -> dict[str, Any]:
        """How things stand, and counters since the engine was made; docs/kv_cache.md tells what
        each means.

        All of `tramontane.engine.metrics.Metrics`, and ``waiting``, ``running``: sequences now;
        ``preempted``: of those waiting, the ones that ran before; ``oldest_waiting_secs``;
        ``blocks_total``, ``blocks_used``, ``blocks_cached`` (idle, content kept), ``block_size``;
        ``prefix_miss_tokens``, ``prefix_evicted_tokens``; ``computed_tok_per_sec`` and
        ``generated_tok_per_sec``, over ``busy_secs``.
        """
        return self._scheduler.stats()

    # From here on: the engine's thread only.

    def step(self) -> None:
        """One step for every running sequence."""
        step = self._scheduler.schedule()
        logits = self._forward(step)
        tokens = self._sample(step, logits)
        self._commit(step, tokens)

    def _work(self) -> None:
        """Step until there is nothing left to do, or the engine is closed."""
        while not self._mailbox.closed:
            if self._mailbox.has_mail:
                self._read_mail()
            if not self._scheduler.has_work:
                return
            begin = time.perf_counter()
            try:
                self.step()
            except Exception as exc:
                self._start_afresh(exc)
            self._metrics.busy_secs += time.perf_counter() - begin

    def _read_mail(self) -> None:
        submitted, canceled = self._mailbox.collect()
        for seq in submitted:
            self._scheduler.add(seq)
        for seq in canceled:
            self._end(seq, "canceled")

    def _forward(self, step: Step) -> Tensor:
        """Logits [R, vocab] of ``step.sampling``. A sequence that makes the model fail is failed
        alone, after which ``step.sampling`` no longer holds it."""
        try:
            logits = self._executor.forward(step.batch)
        except Exception as exc:
            logits = self._forward_singly(step, exc)
        self._forward_done = time.perf_counter()
        self._metrics.steps += 1
        return logits

    def _forward_singly(self, step: Step, error: Exception) -> Tensor:
        """Find who failed a step by running its sequences one by one. Writing the same K and V a
        second time is harmless, and so is a state, which is not written where it is read."""
        _log.warning("a step of %d sequences failed: %s", len(step.seqs), error)
        release_frames(error)
        if is_out_of_memory(error) and torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(step.seqs) == 1:
            self._fail(step.seqs[0], forward_error(step.seqs[0], step.query_lens[0], error))
        rows: list[Tensor] = []
        for seq, length in zip(step.seqs, step.query_lens, strict=True):
            if seq.status is Status.FINISHED:
                continue
            try:
                rows.append(self._executor.forward(self._scheduler.only(seq, length).batch).clone())
            except Exception as exc:
                self._fail(seq, forward_error(seq, length, exc))
        step.sampling = [seq for seq in step.sampling if seq.status is not Status.FINISHED]
        return torch.cat(rows) if rows else torch.empty(0, 0)

    def _sample(self, step: Step, logits: Tensor) -> list[SampledToken]:
        """The next token of each of ``step.sampling``; again, who fails fails alone."""
        states = [seq.sampler_state for seq in step.sampling]
        if not states:
            return []
        try:
            return self._sampler.sample(logits, states)
        except Exception:
            return self._sample_singly(step, logits)

    def _sample_singly(self, step: Step, logits: Tensor) -> list[SampledToken]:
        tokens: list[SampledToken] = []
        survivors: list[Sequence] = []
        for seq, row in zip(step.sampling, logits.unsqueeze(1), strict=True):
            try:
                tokens += self._sampler.sample(row, [seq.sampler_state])
            except Exception as exc:
                self._fail(seq, chained(f"No token could be sampled for this request: {exc}", exc))
            else:
                survivors.append(seq)
        step.sampling = survivors
        return tokens

    def _commit(self, step: Step, tokens: list[SampledToken]) -> None:
        """Record what was computed, hand the new text on, let go of what has ended."""
        for seq, length in zip(step.seqs, step.query_lens, strict=True):
            if seq.status is not Status.FINISHED:
                self._scheduler.computed(seq, length)
        for seq, token in zip(step.sampling, tokens, strict=True):
            if seq.canceled:
                self._end(seq, "canceled")
                continue
            if seq.timings.first_token is None:
                seq.timings.prompt_done = self._forward_done
                seq.timings.first_token = time.perf_counter()
                self._metrics.prompt_tokens += len(seq.prompt_ids)
            self._metrics.generated_tokens += 1
            try:
                reason = seq.append(token, self._eos_token_ids, self.max_seq_len)
            except EngineError as exc:
                self._fail(seq, exc)
                continue
            except Exception as exc:
                self._fail(seq, chained(f"Token {token.token_id} could not be decoded: {exc}", exc))
                continue
            if reason is not None:
                self._end(seq, reason)
            elif self._switch_len is not None and (
                seq.num_computed <= self._switch_len < seq.num_tokens
            ):
                self._scheduler.restart(seq, self._regime(seq.num_tokens))

    def _end(self, seq: Sequence, reason: FinishReason, error: EngineError | None = None) -> None:
        if seq.status is not Status.FINISHED:
            self._scheduler.remove(seq)
            self._count_end(reason)
            seq.finish(reason, error)

    def _count_end(self, reason: FinishReason) -> None:
        self._metrics.finished += 1
        self._metrics.failed += reason == "error"
        self._metrics.canceled += reason == "canceled"

    def _fail(self, seq: Sequence, error: EngineError) -> None:
        _log.warning("a request failed: %s", error)
        self._end(seq, "error", error)

    def _start_afresh(self, exc: Exception) -> None:
        """A step broke outside of model, sampler and text, so nothing is known of the state of
        queue and blocks: fail what is there, and serve the next requests from an empty cache."""
        _log.exception("the engine failed; its requests end, the next ones start afresh")
        scheduler, self._scheduler = self._scheduler, self._new_scheduler()
        for seq in scheduler.running + scheduler.waiting:
            self._count_end("error")
            seq.finish("error", chained(f"The engine failed: {exc}", exc))

    def _shut_down(self) -> None:
        scheduler, self._scheduler = self._scheduler, self._new_scheduler()
        _turn_away(scheduler.running + scheduler.waiting)
        self._executor.close()

    def _new_scheduler(self) -> Scheduler:
        blocks = BlockManager(
            self._executor.num_blocks,
            self._block_size,
            prefix_cache=self._prefix_cache,
            metrics=self._metrics,
        )
        return Scheduler(
            blocks,
            max_seqs=self._max_seqs,
            max_step_tokens=self._max_step_tokens,
            max_seq_len=self.max_seq_len,
            recompute=self._no_kv_cache,
            recurrent=self._recurrent,
        )


def _serve(engine_ref: weakref.ref[Engine], mailbox: Mailbox) -> None:
    """Body of the engine's thread."""
    try:
        with torch.inference_mode():
            while mailbox.wait():
                engine = engine_ref()
                if engine is None:
                    break
                engine._work()
                del engine
    finally:  # whatever ends this thread, nobody waits in vain
        mailbox.close()
        engine = engine_ref()
        if engine is not None:
            engine._shut_down()
        _turn_away(mailbox.collect()[0])


def _close(mailbox: Mailbox, thread: threading.Thread) -> None:
    mailbox.close()
    if threading.current_thread() is not thread:
        thread.join()


def _turn_away(seqs: Iterable[Sequence]) -> None:
    for seq in seqs:
        seq.finish("error", EngineClosedError("The model was closed before this request ended."))
