"""How a step is attended to: which sequences go together, and which cached blocks they see.

What the reference operators of attention share.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from attrs import frozen
from torch import Tensor

from tramontane.kernels.eight_bit import dequantize, raw
from tramontane.protocols.batch import ForwardBatch


@frozen(eq=False)
class Part:
    """Sequences attended to in one go: one prompt chunk, or decode steps of similar lengths.

    Attributes:
        rows: packed rows of the queries; None for all of them, in order.
        num_seqs, num_queries: queries are ``num_seqs`` x ``num_queries`` rows.
        index: [num_seqs * num_kv_heads * n] rows of the cache seen as
            [num_blocks * num_kv_heads, block_size, head_dim].
        start, stop: tokens wanted among the ``n * block_size`` gathered.
        mask: bool, broadcast over [num_seqs, 1, num_queries, stop - start]; None when every query
            sees every key.
        causal: the mask is the plain lower triangle, so none is given.
    """

    rows: Tensor | slice | None
    num_seqs: int
    num_queries: int
    index: Tensor
    start: int
    stop: int
    mask: Tensor | None
    causal: bool


plans: WeakKeyDictionary[ForwardBatch, dict[tuple[int, int, int | None], list[Part]]]
plans = WeakKeyDictionary()
"""Parts by step and geometry: layers of equal geometry share one plan a step."""


def plan_parts(
    batch: ForwardBatch, num_kv_heads: int, block_size: int, window: int | None
) -> list[Part]:
    """The parts of a step, for a cache of this geometry: every packed row is in one of them."""
    known = plans.setdefault(batch, {})
    key = (num_kv_heads, block_size, window)
    if key not in known:
        known[key] = _make_plan(batch, num_kv_heads, block_size, window)
    return known[key]


def _make_plan(
    batch: ForwardBatch, num_kv_heads: int, block_size: int, window: int | None
) -> list[Part]:
    """Prompt chunks stand alone; decode steps join others of up to twice their length."""
    parts: list[Part] = []
    alike: dict[int, list[tuple[int, int]]] = {}  # size class -> (sequence, packed row)
    row = 0
    for i, num_queries in enumerate(batch.query_lens):
        if num_queries == 1:
            _, low, high = _span(batch, i, block_size, window)
            alike.setdefault((high - low - 1).bit_length(), []).append((i, row))
        elif num_queries > 1:
            rows = slice(row, row + num_queries)
            parts.append(_chunk(batch, i, rows, num_kv_heads, block_size, window))
        row += num_queries
    parts += [_decode(batch, m, num_kv_heads, block_size, window) for m in alike.values()]
    return parts


def _span(batch: ForwardBatch, i: int, block_size: int, window: int | None) -> tuple[int, int, int]:
    """First visible position of sequence ``i``, first block to read, block past the last."""
    length = batch.kv_lens[i]
    oldest = length - batch.query_lens[i]
    first = 0 if window is None else max(0, oldest - window + 1)
    return first, first // block_size, -(-length // block_size)


def _rows_of(blocks: Tensor, num_kv_heads: int) -> Tensor:
    """Blocks [num_seqs, n] as rows of [num_blocks * num_kv_heads, ...], heads before blocks."""
    heads = torch.arange(num_kv_heads, device=blocks.device)[:, None]
    return (blocks[:, None].long() * num_kv_heads + heads).flatten()


def _chunk(
    batch: ForwardBatch,
    i: int,
    rows: slice,
    num_kv_heads: int,
    block_size: int,
    window: int | None,
) -> Part:
    num_queries, length = batch.query_lens[i], batch.kv_lens[i]
    first, low, high = _span(batch, i, block_size, window)
    index = _rows_of(batch.block_tables[i : i + 1, low:high], num_kv_heads)
    causal = num_queries == length and (window is None or window >= length)
    mask = None
    if not causal:
        device = index.device
        key = torch.arange(first, length, device=device)
        query = torch.arange(length - num_queries, length, device=device)[:, None]
        mask = key <= query  # [num_queries, length - first]
        if window is not None:
            mask &= key > query - window
    everything = rows == slice(0, batch.num_tokens)
    start = first - low * block_size
    return Part(
        rows=None if everything else rows,
        num_seqs=1,
        num_queries=num_queries,
        index=index,
        start=start,
        stop=start + length - first,
        mask=mask,
        causal=causal,
    )


def _decode(
    batch: ForwardBatch,
    members: list[tuple[int, int]],
    num_kv_heads: int,
    block_size: int,
    window: int | None,
) -> Part:
    spans = [_span(batch, i, block_size, window) for i, _ in members]
    width = max(high - low for _, low, high in spans)
    device = batch.block_tables.device
    if len(members) == 1:
        i, ((first, low, high),) = members[0][0], spans
        blocks = batch.block_tables[i : i + 1, low:high]
        start, stop, mask = first - low * block_size, batch.kv_lens[i] - low * block_size, None
    else:
        # Short tables are filled up with their own last block, which the mask then hides.
        columns = [[min(low + j, high - 1) for j in range(width)] for _, low, high in spans]
        seqs = torch.tensor([i for i, _ in members], device=device)
        blocks = batch.block_tables[seqs[:, None], torch.tensor(columns, device=device)]
        start, stop = 0, width * block_size
        begins = [first - low * block_size for first, low, _ in spans]
        ends = [
            batch.kv_lens[i] - low * block_size
            for (i, _), (_, low, _) in zip(members, spans, strict=True)
        ]
        bounds = torch.tensor([begins, ends], device=device)[:, :, None]
        token = torch.arange(stop, device=device)
        mask = (token >= bounds[0]) & (token < bounds[1])  # [num_seqs, stop]
        mask = mask[:, None, None]
    everything = len(members) == batch.num_tokens
    return Part(
        rows=None if everything else torch.tensor([r for _, r in members], device=device),
        num_seqs=len(members),
        num_queries=1,
        index=_rows_of(blocks, num_kv_heads),
        start=start,
        stop=stop,
        mask=mask,
        causal=False,
    )


def gather(storage: Tensor, part: Part) -> Tensor:
    """What a part sees of ``storage`` [num_blocks, num_kv_heads, block_size, head_dim]:
    [num_seqs, num_kv_heads, stop - start, head_dim]."""
    _, num_kv_heads, block_size, head_dim = storage.shape
    found = raw(storage).view(-1, block_size, head_dim).index_select(0, part.index)
    found = found.view(storage.dtype).view(part.num_seqs, num_kv_heads, -1, head_dim)
    return found[:, :, part.start : part.stop]


def read(storage: Tensor, scales: Tensor | None, part: Part, dtype: torch.dtype) -> Tensor:
    """`gather` as ``dtype``, times what ``scales`` [num_blocks, num_kv_heads, block_size] says."""
    factors = None if scales is None else gather(scales[..., None], part)[..., 0]
    return dequantize(gather(storage, part), factors, dtype)
