"""Runs a model step by step without an engine, so that a test decides what each step holds."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from attrs import define, field
from torch import Tensor

from tramontane.protocols import ForwardBatch

_NUM_SEQS = 16


@define
class _Sequence:
    """Tokens known, tokens computed, blocks and state slots held."""

    token_ids: list[int]
    state_slots: tuple[int, int]
    num_computed: int = 0
    block_ids: list[int] = field(factory=list)


class Stepper:
    """A model, its caches and some sequences.

    Blocks and state slots are handed out in a shuffled order, so nothing can rely on neighbours.

    Args:
        model: an architecture with its weights.
        config: its config.
        num_blocks, block_size: cache to allocate; small blocks make many edges.
        dtype, device: of the cache.
    """

    def __init__(
        self,
        model: Any,
        config: Any,
        *,
        num_blocks: int = 256,
        block_size: int = 4,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self._model = model
        self._device = torch.device(device)
        self._block_size = block_size
        self._caches = [
            spec.allocate(
                num_blocks=num_blocks,
                block_size=block_size,
                num_seqs=_NUM_SEQS,
                dtype=dtype,
                device=self._device,
            )
            for spec in type(model).cache_specs(config)
        ]
        self._free = list(range(num_blocks))
        random.Random(0).shuffle(self._free)
        states = random.Random(1).sample(range(2 * _NUM_SEQS), 2 * _NUM_SEQS)
        self._free_states = list(zip(states[::2], states[1::2], strict=True))
        self._sequences: dict[str, _Sequence] = {}

    def add(self, name: str, token_ids: Sequence[int]) -> None:
        """A new sequence, of which nothing is computed yet."""
        self._sequences[name] = _Sequence(list(token_ids), self._free_states.pop(0))

    def append(self, name: str, token_id: int) -> None:
        """One more token of a sequence."""
        self._sequences[name].token_ids.append(token_id)

    def remove(self, name: str) -> list[int]:
        """Forget a sequence and give its blocks and slots back, to be used by others next.
        Returns its tokens."""
        sequence = self._sequences.pop(name)
        self._free[:0] = sequence.block_ids
        self._free_states.insert(0, sequence.state_slots)
        return sequence.token_ids

    @torch.inference_mode()
    def step(self, counts: Mapping[str, int]) -> dict[str, Tensor]:
        """Compute the next ``counts[name]`` tokens of each sequence named, in one forward.

        Returns:
            name → logits of those tokens, float32 [count, vocab] on the CPU.
        """
        batch = self._batch(counts)
        hidden = self._model(batch, self._caches)
        logits = self._model.logits(hidden[batch.logit_rows]).float().cpu()
        return dict(zip(counts, torch.split(logits, list(counts.values())), strict=True))

    def finish(self, name: str) -> Tensor:
        """Compute everything left of one sequence: logits [left, vocab]."""
        sequence = self._sequences[name]
        return self.step({name: len(sequence.token_ids) - sequence.num_computed})[name]

    def greedy(self, name: str, count: int) -> list[int]:
        """Continue a sequence by ``count`` tokens, each the likeliest."""
        chosen: list[int] = []
        for _ in range(count):
            token_id = int(self.finish(name)[-1].argmax())
            chosen.append(token_id)
            self.append(name, token_id)
        return chosen

    def _batch(self, counts: Mapping[str, int]) -> ForwardBatch:
        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        tables: list[list[int]] = []
        lengths: list[int] = []
        known: list[int] = []
        states: list[tuple[int, int]] = []
        size = self._block_size
        for name, count in counts.items():
            sequence = self._sequences[name]
            start, stop = sequence.num_computed, sequence.num_computed + count
            assert 0 < count <= len(sequence.token_ids) - start, f"{name} has no {count} tokens"
            while len(sequence.block_ids) * size < stop:
                sequence.block_ids.append(self._free.pop(0))
            token_ids += sequence.token_ids[start:stop]
            positions += range(start, stop)
            slots += (sequence.block_ids[p // size] * size + p % size for p in range(start, stop))
            tables.append(sequence.block_ids)
            lengths.append(stop)
            known.append(len(sequence.token_ids))
            sequence.num_computed = stop
            states.append(sequence.state_slots)
            sequence.state_slots = sequence.state_slots[::-1]
        width = max(map(len, tables))
        padded = [table + [-1] * (width - len(table)) for table in tables]
        starts = [0]
        for count in counts.values():
            starts.append(starts[-1] + count)

        def tensor(values: list[Any], dtype: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=self._device)

        return ForwardBatch(
            token_ids=tensor(token_ids, torch.int64),
            positions=tensor(positions, torch.int64),
            query_starts=tensor(starts, torch.int32),
            context_lens=tensor(lengths, torch.int32),
            slots=tensor(slots, torch.int64),
            block_tables=tensor(padded, torch.int32),
            logit_rows=torch.arange(len(token_ids), device=self._device),
            query_lens=list(counts.values()),
            kv_lens=lengths,
            seq_lens=known,
            state_slots=tensor(states, torch.int64),
        )
