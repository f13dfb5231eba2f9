"""`Sequence`: the one mutable record of a generation in progress."""

from __future__ import annotations

import time
from enum import Enum

from attrs import define, field

from tramontane.engine.output import FinishReason, OutputQueue
from tramontane.engine.transcript import Transcript
from tramontane.errors import EngineError, TramontaneError
from tramontane.sampling.constraint import Constraint
from tramontane.sampling.params import SamplingParams
from tramontane.sampling.sampler import SampledToken, SamplerState
from tramontane.text.tokenizer import Tokenizer


class Status(Enum):
    """Where a sequence is in its life. A preempted one is WAITING again."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@define
class Timings:
    """When things happened, in seconds of ``time.perf_counter``; None until they have.

    Attributes:
        arrived: submitted.
        scheduled: first given blocks.
        prompt_done: all of the prompt computed.
        first_token: first token sampled.
        finished: the last delta written.
    """

    arrived: float | None = None
    scheduled: float | None = None
    prompt_done: float | None = None
    first_token: float | None = None
    finished: float | None = None

    @property
    def waited_secs(self) -> float:
        """In the queue before it was first given blocks; until now while it still waits, and 0 if
        it was never submitted."""
        if self.arrived is None:
            return 0.0
        return (time.perf_counter() if self.scheduled is None else self.scheduled) - self.arrived


@define(kw_only=True, eq=False)
class Sequence:
    """A prompt and what has been generated from it. Make one with `Sequence.of`.

    The caller fills the first group and reads all of it once the output has ended; everything
    else belongs to the engine's thread from ``submit`` on.

    Attributes:
        prompt_ids: the prompt; not changed.
        params: sampling and stop rules.
        output: where deltas go; may be shared by several sequences of one request.
        index: which of those this is.
        ignore_eos: go on past end-of-sequence tokens.
        constraint: the grammar the output follows; None for any text.
        cache_root: digest of what K and V depend on beside the tokens (adapter, images);
            sequences share blocks only when it is equal.
        regime: digest of what K depend on by the sequence's length (LongRoPE); blocks are shared
            only within one.
        output_ids: sampled tokens, the one that ended it included; grows.
        num_cached_tokens: prompt tokens found computed when it was first scheduled.
        finish_reason: as in `Delta`; None while it goes on.
        error: what it failed with, if it did.
        timings: for usage figures.

        arrival: order of submission; a later one yields its blocks first.
        status: see `Status`.
        num_tokens: prompt and output together.
        num_computed: tokens whose K and V are in the cache.
        block_ids: its blocks, in order.
        block_keys: keys of its full blocks, as far as they were computed.
        num_hashed: leading blocks that are in the prefix index.
        row: its row of the block table while RUNNING, else -1.
        state_slots: where its recurrent state is, and where the next step puts the new one; while
            RUNNING, and if the model has any.
        canceled: the reader has lost interest.
    """

    prompt_ids: list[int]
    params: SamplingParams
    sampler_state: SamplerState
    transcript: Transcript
    output: OutputQueue
    index: int = 0
    ignore_eos: bool = False
    constraint: Constraint | None = None
    cache_root: bytes = b""
    regime: bytes = b""

    output_ids: list[int] = field(init=False)
    num_cached_tokens: int = field(default=0, init=False)
    finish_reason: FinishReason | None = field(default=None, init=False)
    error: TramontaneError | None = field(default=None, init=False)
    timings: Timings = field(factory=Timings, init=False)

    arrival: int = field(default=-1, init=False)
    status: Status = field(default=Status.WAITING, init=False)
    num_tokens: int = field(init=False)
    num_computed: int = field(default=0, init=False)
    block_ids: list[int] = field(factory=list, init=False)
    block_keys: list[bytes] = field(factory=list, init=False)
    num_hashed: int = field(default=0, init=False)
    row: int = field(default=-1, init=False)
    state_slots: tuple[int, int] = field(default=(-1, -1), init=False)
    canceled: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self.output_ids = self.sampler_state.output_ids
        self.num_tokens = len(self.prompt_ids)

    @classmethod
    def of(
        cls,
        tokenizer: Tokenizer,
        prompt_ids: list[int],
        params: SamplingParams,
        *,
        output: OutputQueue | None = None,
        index: int = 0,
        seed: int | None = None,
        ignore_eos: bool = False,
        cache_root: bytes = b"",
        regime: bytes = b"",
        new_text: bool = False,
        shown: frozenset[int] = frozenset(),
        constraint: Constraint | None = None,
    ) -> Sequence:
        """Build a sequence with its sampler state and transcript.

        Args:
            output: a queue shared with the request's other sequences; None for one of its own.
            new_text: the output is a text of its own, as an answer is, and no continuation of
                the prompt's: a SentencePiece tokenizer then puts no space before its first word.
            shown: special tokens that are part of the output's text; the others are left out.
            seed: overrides ``params.seed``, so that several choices of one request differ.
        """
        return cls(
            prompt_ids=prompt_ids,
            params=params,
            sampler_state=SamplerState(
                params,
                prompt_ids,
                seed=seed,
                allowed_mask=None if constraint is None else constraint.allowed,
            ),
            transcript=Transcript(tokenizer, [] if new_text else prompt_ids, params, shown),
            output=OutputQueue() if output is None else output,
            index=index,
            ignore_eos=ignore_eos,
            constraint=constraint,
            cache_root=cache_root,
            regime=regime,
        )

    @property
    def num_pending(self) -> int:
        """Tokens that are known but not computed yet; 1 while decoding."""
        return self.num_tokens - self.num_computed

    def tokens(self, start: int, stop: int) -> list[int]:
        """Tokens ``start:stop`` of prompt and output together."""
        num_prompt = len(self.prompt_ids)
        if stop <= num_prompt:
            return self.prompt_ids[start:stop]
        if start >= num_prompt:
            return self.output_ids[start - num_prompt : stop - num_prompt]
        return self.prompt_ids[start:] + self.output_ids[: stop - num_prompt]

    @property
    def last_token(self) -> int:
        return self.output_ids[-1] if self.output_ids else self.prompt_ids[-1]

    def append(
        self, token: SampledToken, eos_token_ids: frozenset[int], max_seq_len: int
    ) -> FinishReason | None:
        """Take the next token: grow, and hand its text on.

        Returns:
            Why the sequence ends with it, or None. The caller then calls `finish`.
        """
        token_id = token.token_id
        self.output_ids.append(token_id)
        self.num_tokens += 1
        params = self.params
        if token_id in params.stop_token_ids or (token_id in eos_token_ids and not self.ignore_eos):
            self.transcript.push_last(token)
            return "stop"
        if self.constraint is not None:
            self.constraint.advance(token_id)
        if self.transcript.push(token) or (self.constraint and self.constraint.finished):
            return "stop"
        if params.max_tokens is not None and len(self.output_ids) >= params.max_tokens:
            return "length"
        if self.num_tokens >= max_seq_len:
            return "length"
        delta = self.transcript.take(self.index)
        if delta is not None:
            self.output.put(delta)
        return None

    def finish(self, reason: FinishReason, error: TramontaneError | None = None) -> None:
        """Write the last delta. A second call does nothing."""
        if self.status is Status.FINISHED:
            return
        self.status = Status.FINISHED
        try:
            if self.transcript.flush() and reason == "length":
                reason = "stop"
        except Exception as exc:
            if error is None:
                reason, error = "error", EngineError("The rest of the text could not be decoded.")
                error.__cause__ = exc
        self.finish_reason = reason
        self.error = error
        self.timings.finished = time.perf_counter()
        delta = self.transcript.take(self.index, reason, error)
        assert delta is not None
        self.output.put(delta)
