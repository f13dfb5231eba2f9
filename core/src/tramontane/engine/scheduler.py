"""Who runs in the next step, and on which blocks."""

from __future__ import annotations

import time
from bisect import bisect_left, insort
from operator import attrgetter
from typing import Any

from attrs import asdict, define

from tramontane.engine.batch import BatchWriter
from tramontane.engine.block_manager import BlockManager
from tramontane.engine.sequence import Sequence, Status
from tramontane.protocols.batch import ForwardBatch

_arrival = attrgetter("arrival")


@define(eq=False)
class Step:
    """What one step computes.

    Attributes:
        seqs: its sequences, by arrival.
        query_lens: tokens computed for each.
        sampling: those that get a next token, one a row of the logits.
        batch: the same for the model.
    """

    seqs: list[Sequence]
    query_lens: list[int]
    sampling: list[Sequence]
    batch: ForwardBatch


class Scheduler:
    """Continuous batching, first come first served.

    A step decodes every running sequence and fills what is left of its token budget with prompt
    chunks, oldest first. Whoever arrived earlier is admitted earlier, except that a sequence
    whose prefix is being computed by another lets others pass until it can share it. When blocks
    run out, the sequence that arrived last gives its own back and is computed again later; the
    oldest one therefore always gets on, and everybody becomes the oldest in time.

    Args:
        blocks: the cache's blocks; its metrics are the scheduler's too.
        max_seqs: sequences that may run at once.
        max_step_tokens: tokens a step may compute.
        max_seq_len: tokens of the longest sequence.
        recompute: compute every sequence anew in each step (``no_kv_cache``); blocks then serve
            within a step only.
        recurrent: layers keep a state of each sequence. Every running one then owns two slots
            for it, of which the first holds the state and the second receives the next.
    """

    def __init__(
        self,
        blocks: BlockManager,
        *,
        max_seqs: int,
        max_step_tokens: int,
        max_seq_len: int,
        recompute: bool = False,
        recurrent: bool = False,
    ) -> None:
        self.blocks = blocks
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.metrics = blocks.metrics
        self._max_seqs = max_seqs
        self._max_step_tokens = max_seqs * max_seq_len if recompute else max_step_tokens
        self._recompute = recompute
        self._recurrent = recurrent
        self._free_states = [(2 * i, 2 * i + 1) for i in reversed(range(max_seqs))]
        self._writer = BatchWriter(
            max_seqs=max_seqs,
            max_blocks=blocks.blocks_for(max_seq_len),
            max_tokens=self._max_step_tokens,
            block_size=blocks.block_size,
            recurrent=recurrent,
        )

    @property
    def has_work(self) -> bool:
        return bool(self.running or self.waiting)

    def stats(self) -> dict[str, Any]:
        """See `tramontane.engine.engine.Engine.stats`. From any thread."""
        blocks, metrics = self.blocks, self.metrics
        waiting = list(self.waiting)
        fresh = [seq.timings for seq in waiting if seq.timings.scheduled is None]
        busy_secs = metrics.busy_secs or 1.0
        return asdict(metrics) | {
            "waiting": len(waiting),
            "running": len(self.running),
            "preempted": len(waiting) - len(fresh),
            "oldest_waiting_secs": max((timings.waited_secs for timings in fresh), default=0.0),
            "blocks_total": blocks.num_blocks,
            "blocks_used": blocks.num_used,
            "blocks_cached": blocks.num_cached,
            "block_size": blocks.block_size,
            "prefix_miss_tokens": metrics.prefix_lookup_tokens - metrics.prefix_hit_tokens,
            "prefix_evicted_tokens": metrics.prefix_evictions * blocks.block_size,
            "computed_tok_per_sec": metrics.computed_tokens / busy_secs,
            "generated_tok_per_sec": metrics.generated_tokens / busy_secs,
        }

    def add(self, seq: Sequence) -> None:
        """Queue a sequence; ``seq.arrival`` is set."""
        insort(self.waiting, seq, key=_arrival)

    def schedule(self) -> Step:
        """Choose, give blocks, write the batch. There must be work."""
        seqs: list[Sequence] = []
        query_lens: list[int] = []
        num_decoding = sum(seq.num_pending == 1 for seq in self.running)
        budget = self._max_step_tokens - num_decoding
        num_running = len(self.running)
        i = 0
        while i < len(self.running):  # shrinks from its end by preemption
            seq = self.running[i]
            i += 1
            length = seq.num_pending
            if length > 1:
                length = min(length, budget)
                budget -= length
            if length and self._make_room(seq):
                seqs.append(seq)
                query_lens.append(length)
        if budget > 0 and len(self.running) == num_running:
            self._admit(seqs, query_lens, budget)
        return self._step(seqs, query_lens)

    def only(self, seq: Sequence, query_len: int) -> Step:
        """A step of one running sequence, to find out which of a step's sequences failed it."""
        return self._step([seq], [query_len])

    def computed(self, seq: Sequence, num_tokens: int) -> None:
        """The forward has put ``num_tokens`` more tokens of ``seq`` into the cache."""
        seq.num_computed += num_tokens
        self.metrics.computed_tokens += num_tokens
        seq.state_slots = seq.state_slots[::-1]
        self.blocks.computed(seq)
        if self._recompute and not seq.num_pending:
            seq.num_computed = 0

    def restart(self, seq: Sequence, regime: bytes) -> None:
        """Compute a running sequence anew from its first token: its keys are others from now on."""
        self._stop_running(seq)
        self.blocks.release(seq, finished=True)  # nobody comes back for the old keys
        seq.block_keys = []
        seq.regime = regime
        self.blocks.hash_prompt(seq)
        self._queue_again(seq)
        self.metrics.restarts += 1

    def remove(self, seq: Sequence) -> None:
        """Forget a sequence, whether it waits, runs or was never here; its blocks are free at
        once."""
        if seq.status is Status.RUNNING:
            self._stop_running(seq)
        else:
            at = bisect_left(self.waiting, seq.arrival, key=_arrival)
            if at < len(self.waiting) and self.waiting[at] is seq:
                del self.waiting[at]
        self.blocks.release(seq, finished=True)

    def _step(self, seqs: list[Sequence], query_lens: list[int]) -> Step:
        sampling = [
            seq for seq, length in zip(seqs, query_lens, strict=True) if length == seq.num_pending
        ]
        return Step(seqs, query_lens, sampling, self._writer.write(seqs, query_lens))

    def _make_room(self, seq: Sequence) -> bool:
        """Blocks for all known tokens of a running sequence, taken from later ones if need be.
        Returns False when it had to give its own."""
        num_blocks = len(seq.block_ids)
        if seq.num_tokens <= num_blocks * self.blocks.block_size:
            return True
        while not self.blocks.grow(seq, seq.num_tokens):
            victim = self.running[-1]
            self._preempt(victim)
            if victim is seq:
                return False
        self._writer.extend_row(seq.row, seq.block_ids, num_blocks)
        return True

    def _preempt(self, seq: Sequence) -> None:
        self._stop_running(seq)
        self.blocks.release(seq, finished=False)
        self._queue_again(seq)
        self.metrics.preemptions += 1

    def _queue_again(self, seq: Sequence) -> None:
        seq.num_computed = 0
        seq.status = Status.WAITING
        self.add(seq)

    def _admit(self, seqs: list[Sequence], query_lens: list[int], budget: int) -> None:
        """Let waiting sequences run while budget, rows and blocks last."""
        i = 0
        while budget > 0 and len(self.running) < self._max_seqs and i < len(self.waiting):
            seq = self.waiting[i]
            if self.blocks.awaits_other(seq):
                i += 1
                if i > self._max_seqs:
                    return
                continue
            # One block is left for each running sequence, or the newcomer would soon be preempted.
            if not self.blocks.admit(seq, reserve=len(self.running)):
                return
            del self.waiting[i]
            self._start_running(seq)
            length = min(seq.num_pending, budget)
            budget -= length
            at = bisect_left(seqs, seq.arrival, key=_arrival)
            seqs.insert(at, seq)
            query_lens.insert(at, length)

    def _start_running(self, seq: Sequence) -> None:
        self.metrics.admissions += 1
        if seq.timings.scheduled is None:
            seq.timings.scheduled = time.perf_counter()
            seq.num_cached_tokens = seq.num_computed
            waited = seq.timings.waited_secs
            self.metrics.queue_secs += waited
            self.metrics.longest_queue_secs = max(self.metrics.longest_queue_secs, waited)
        seq.status = Status.RUNNING
        if self._recurrent:
            seq.state_slots = self._free_states.pop()
        row = bisect_left(self.running, seq.arrival, key=_arrival)
        self._writer.insert_row(row, len(self.running), seq.block_ids)
        self.running.insert(row, seq)
        self._renumber(row)

    def _stop_running(self, seq: Sequence) -> None:
        self._writer.remove_row(seq.row, len(self.running))
        del self.running[seq.row]
        self._renumber(seq.row)
        seq.row = -1
        if self._recurrent:
            self._free_states.append(seq.state_slots)
            seq.state_slots = (-1, -1)

    def _renumber(self, start: int) -> None:
        for row in range(start, len(self.running)):
            self.running[row].row = row
