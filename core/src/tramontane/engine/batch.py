"""Writing a step's `ForwardBatch` into buffers that stay put."""

from __future__ import annotations

import numpy as np
import torch
from attrs import frozen
from torch import Tensor

from tramontane.engine.sequence import Sequence
from tramontane.protocols.batch import ForwardBatch


@frozen(kw_only=True)
class _Views:
    """The tensors of a `ForwardBatch` that are the same objects as long as their shapes are."""

    token_ids: Tensor
    positions: Tensor
    slots: Tensor
    query_starts: Tensor
    context_lens: Tensor
    logit_rows: Tensor


class BatchWriter:
    """Block tables of the running sequences, and the packed tokens of one step.

    Every running sequence has a row of the table, in the order in which the scheduler keeps them,
    so that in the usual step the table needs no copying: it is a view, and between steps only
    what changed is written. All tensors of a `ForwardBatch` live on the CPU and are overwritten
    by the next one.

    Args:
        max_seqs: rows.
        max_blocks: blocks of the longest sequence.
        max_tokens: tokens of the largest step.
        block_size: tokens a block.
        recurrent: whether the model needs to be told the sequences' state slots.
    """

    def __init__(
        self,
        *,
        max_seqs: int,
        max_blocks: int,
        max_tokens: int,
        block_size: int,
        recurrent: bool = False,
    ) -> None:
        self._block_size = block_size
        self._state_slots = np.empty((max_seqs, 2), np.int64) if recurrent else None
        # Untouched pages of these take no memory, so generous limits cost nothing.
        self._token_ids = np.empty(max_tokens, np.int64)
        self._positions = np.empty(max_tokens, np.int64)
        self._slots = np.empty(max_tokens, np.int64)
        self._query_starts = np.zeros(max_seqs + 1, np.int32)
        self._counting = np.arange(max_seqs + 1, dtype=np.int32)
        self._context_lens = np.empty(max_seqs, np.int32)
        self._logit_rows = np.empty(max_seqs, np.int64)
        self._tables = np.full((max_seqs, max_blocks), -1, np.int32)
        self._shape: tuple[int, int, int] | None = None
        self._views = self._slices(0, 0, 0)
        self._table_shape: tuple[int, int, int] | None = None
        self._table_view = torch.from_numpy(self._tables)

    def insert_row(self, row: int, num_rows: int, block_ids: list[int]) -> None:
        """Open ``row`` for a sequence; rows from there on, of ``num_rows``, move down."""
        self._tables[row + 1 : num_rows + 1] = self._tables[row:num_rows]
        self._tables[row, : len(block_ids)] = block_ids
        self._tables[row, len(block_ids) :] = -1

    def remove_row(self, row: int, num_rows: int) -> None:
        """Close ``row``; the rows below it, of ``num_rows``, move up."""
        self._tables[row : num_rows - 1] = self._tables[row + 1 : num_rows]

    def extend_row(self, row: int, block_ids: list[int], start: int) -> None:
        """Write the blocks from index ``start`` on, after the sequence has grown."""
        self._tables[row, start : len(block_ids)] = block_ids[start:]

    def write(self, seqs: list[Sequence], query_lens: list[int]) -> ForwardBatch:
        """Pack the next ``query_lens[i]`` uncomputed tokens of each sequence. Logits are wanted
        where that reaches the sequence's last token.

        Args:
            seqs: running ones, ascending by row.
        """
        kv_lens = [seq.num_computed + n for seq, n in zip(seqs, query_lens, strict=True)]
        num_seqs = len(seqs)
        num_tokens = sum(query_lens)
        if num_tokens == num_seqs:
            num_logits = self._pack_single_tokens(seqs)
        else:
            num_logits = self._pack_chunks(seqs, query_lens)
        self._context_lens[:num_seqs] = kv_lens
        views = self._slices(num_tokens, num_seqs, num_logits)
        return ForwardBatch(
            token_ids=views.token_ids,
            positions=views.positions,
            slots=views.slots,
            query_starts=views.query_starts,
            context_lens=views.context_lens,
            logit_rows=views.logit_rows,
            block_tables=self._block_tables(seqs),
            query_lens=query_lens,
            kv_lens=kv_lens,
            seq_lens=[seq.num_tokens for seq in seqs],
            state_slots=self._states(seqs),
        )

    def _pack_single_tokens(self, seqs: list[Sequence]) -> int:
        """One token a sequence: the step whose cost per token matters most."""
        num_seqs = len(seqs)
        block_size = self._block_size
        tokens: list[int] = []
        places: list[int] = []
        slots: list[int] = []
        rows: list[int] = []
        for i, seq in enumerate(seqs):
            place = seq.num_computed
            places.append(place)
            slots.append(seq.block_ids[place // block_size] * block_size + place % block_size)
            if seq.num_tokens == place + 1:
                tokens.append(seq.last_token)
                rows.append(i)
            else:
                tokens += seq.tokens(place, place + 1)
        self._token_ids[:num_seqs] = tokens
        self._positions[:num_seqs] = places
        self._slots[:num_seqs] = slots
        self._query_starts[: num_seqs + 1] = self._counting[: num_seqs + 1]
        self._logit_rows[: len(rows)] = rows
        return len(rows)

    def _pack_chunks(self, seqs: list[Sequence], query_lens: list[int]) -> int:
        block_size = self._block_size
        begin = 0
        num_logits = 0
        for i, (seq, length) in enumerate(zip(seqs, query_lens, strict=True)):
            start = seq.num_computed
            end = begin + length
            self._token_ids[begin:end] = seq.tokens(start, start + length)
            places = np.arange(start, start + length)
            self._positions[begin:end] = places
            blocks = self._tables[seq.row, places // block_size].astype(np.int64)
            self._slots[begin:end] = blocks * block_size + places % block_size
            self._query_starts[i + 1] = end
            if start + length == seq.num_tokens:
                self._logit_rows[num_logits] = end - 1
                num_logits += 1
            begin = end
        return num_logits

    def _states(self, seqs: list[Sequence]) -> Tensor | None:
        if self._state_slots is None:
            return None
        self._state_slots[: len(seqs)] = [seq.state_slots for seq in seqs]
        return torch.from_numpy(self._state_slots[: len(seqs)])

    def _slices(self, num_tokens: int, num_seqs: int, num_logits: int) -> _Views:
        """Tensors over the filled parts of the buffers; the last ones again when nothing but
        their content has changed, as it is while the same sequences decode."""
        shape = (num_tokens, num_seqs, num_logits)
        if shape != self._shape:
            self._shape = shape
            self._views = _Views(
                token_ids=torch.from_numpy(self._token_ids[:num_tokens]),
                positions=torch.from_numpy(self._positions[:num_tokens]),
                slots=torch.from_numpy(self._slots[:num_tokens]),
                query_starts=torch.from_numpy(self._query_starts[: num_seqs + 1]),
                context_lens=torch.from_numpy(self._context_lens[:num_seqs]),
                logit_rows=torch.from_numpy(self._logit_rows[:num_logits]),
            )
        return self._views

    def _block_tables(self, seqs: list[Sequence]) -> Tensor:
        """[B, max_blocks] of the sequences, a view where their rows lie together."""
        width = max([len(seq.block_ids) for seq in seqs])
        first, last = seqs[0].row, seqs[-1].row
        if last - first + 1 != len(seqs):
            return torch.from_numpy(self._tables[[seq.row for seq in seqs], :width])
        shape = (first, last, width)
        if shape != self._table_shape:
            self._table_shape = shape
            self._table_view = torch.from_numpy(self._tables[first : last + 1, :width])
        return self._table_view
