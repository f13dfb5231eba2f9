"""The reference of every operator, in plain torch: the truth that faster kernels are tested by.

It runs on every device torch runs on, and is what is bound when no plug-in offers better.
"""

from __future__ import annotations

from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from attrs import frozen
from torch import Tensor
from torch.nn import functional as F

from tramontane.protocols.batch import ForwardBatch
from tramontane.protocols.quantizer import PackedWeight

_QUERY_ROWS = 256
"""Queries whose scores are held at once, where scores have to be written out."""

_DENSE_NUMBERS = 1 << 24
"""Weights de-quantized at once (64 MiB in float32)."""


class PagedStorage(Protocol):
    """What `paged_attention` needs of `tramontane.cache.PagedKV`.

    Attributes:
        k: [num_blocks, num_kv_heads, block_size, head_dim].
        v: [num_blocks, num_kv_heads, block_size, v_head_dim].
    """

    @property
    def k(self) -> Tensor: ...
    @property
    def v(self) -> Tensor: ...


@frozen(eq=False)
class _Part:
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


# Layers of equal geometry share one plan a step.
_plans: WeakKeyDictionary[ForwardBatch, dict[tuple[int, int, int | None], list[_Part]]]
_plans = WeakKeyDictionary()


def paged_attention(
    q: Tensor,
    cache: PagedStorage,
    batch: ForwardBatch,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Causal attention of packed queries over their sequences' cached keys and values.

    The keys and values of this step must already be in the cache. Query heads are shared out in
    order over the key/value heads (grouped-query attention, arXiv:2305.13245).

    Args:
        q: [T, num_heads, head_dim].
        cache: the layer's keys and values.
        batch: which rows belong to which sequence, and its blocks.
        scale: factor on the scores.
        window: a query at position p sees positions above ``p - window`` only.
        softcap: scores become ``softcap * tanh(score / softcap)`` (Gemma 2, arXiv:2408.00118).
        sinks: [num_heads] logits that take part in each softmax and carry no value (gpt-oss).

    Returns:
        [T, num_heads, v_head_dim] in the type of ``q``.
    """
    num_tokens, num_heads, _ = q.shape
    num_kv_heads, block_size = cache.k.shape[1:3]
    out: Tensor | None = None
    for part in _plan(batch, num_kv_heads, block_size, window):
        mine = q if part.rows is None else q[part.rows]
        k = _gather(cache.k, part)  # [num_seqs, num_kv_heads, length, head_dim]
        v = _gather(cache.v, part)
        if softcap is not None or sinks is not None:
            h = _written_out(mine, k, v, part, scale, softcap, sinks)
        elif part.num_queries == 1:
            # The heads that share a key head are rows of one small product; nothing is repeated.
            grouped = mine.view(part.num_seqs, num_kv_heads, num_heads // num_kv_heads, -1)
            mask = part.mask
            h = F.scaled_dot_product_attention(grouped, k, v, attn_mask=mask, scale=scale)
        else:
            h = F.scaled_dot_product_attention(
                mine.transpose(0, 1)[None],
                k,
                v,
                attn_mask=part.mask,
                is_causal=part.causal,
                scale=scale,
                enable_gqa=num_heads != num_kv_heads,
            )[0].transpose(0, 1)
        h = h.reshape(-1, num_heads, v.shape[-1])
        if part.rows is None:
            return h
        if out is None:
            out = q.new_empty(num_tokens, num_heads, v.shape[-1])
        out[part.rows] = h
    assert out is not None
    return out


def packed_linear(x: Tensor, weight: PackedWeight, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias`` with the weight de-quantized a slice of rows at a time.

    Args:
        x: [..., in].
        weight: shape (out, in), or (1, out, in) for one expert of a stack.
        bias: [out] or None.

    Returns:
        [..., out] in the type of ``x``.
    """
    *experts, num_rows, num_columns = weight.shape
    step = max(1, _DENSE_NUMBERS // num_columns)
    if experts or step >= num_rows:
        dense = weight.dequantize(x.dtype).view(num_rows, num_columns)
        return F.linear(x, dense, bias)
    parts = [
        F.linear(x, weight.rows(start, min(start + step, num_rows)).dequantize(x.dtype))
        for start in range(0, num_rows, step)
    ]
    h = torch.cat(parts, -1)
    return h if bias is None else h + bias


OPERATORS: dict[str, Any] = {"paged_attention": paged_attention, "packed_linear": packed_linear}
"""Every operator by name."""


# Attention ------------------------------------------------------------------------------------


def _plan(
    batch: ForwardBatch, num_kv_heads: int, block_size: int, window: int | None
) -> list[_Part]:
    plans = _plans.setdefault(batch, {})
    key = (num_kv_heads, block_size, window)
    if key not in plans:
        plans[key] = _make_plan(batch, num_kv_heads, block_size, window)
    return plans[key]


def _make_plan(
    batch: ForwardBatch, num_kv_heads: int, block_size: int, window: int | None
) -> list[_Part]:
    """Prompt chunks stand alone; decode steps join others of up to twice their length."""
    parts: list[_Part] = []
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
) -> _Part:
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
    return _Part(
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
) -> _Part:
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
    return _Part(
        rows=None if everything else torch.tensor([r for _, r in members], device=device),
        num_seqs=len(members),
        num_queries=1,
        index=_rows_of(blocks, num_kv_heads),
        start=start,
        stop=stop,
        mask=mask,
        causal=False,
    )


def _gather(storage: Tensor, part: _Part) -> Tensor:
    """Keys or values of a part: [num_seqs, num_kv_heads, stop - start, head_dim]."""
    _, num_kv_heads, block_size, head_dim = storage.shape
    found = storage.view(-1, block_size, head_dim).index_select(0, part.index)
    found = found.view(part.num_seqs, num_kv_heads, -1, head_dim)
    return found[:, :, part.start : part.stop]


def _written_out(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    part: _Part,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Attention with its scores at hand, in float32: [num_seqs * num_queries, num_heads, dim]."""
    num_seqs, num_queries = part.num_seqs, part.num_queries
    num_kv_heads = k.shape[1]
    # [num_seqs, num_kv_heads, group, num_queries, head_dim]
    grouped = q.view(num_seqs, num_queries, num_kv_heads, -1, q.shape[-1]).permute(0, 2, 3, 1, 4)
    keys = k.float().transpose(-1, -2)[:, :, None]
    values = v.float()[:, :, None]
    mask = part.mask
    if part.causal:
        mask = torch.ones(num_queries, num_queries, dtype=torch.bool, device=q.device).tril_()
    if mask is not None and mask.dim() == 4:
        mask = mask[:, None]
    out = []
    for low in range(0, num_queries, _QUERY_ROWS):
        scores = (grouped[..., low : low + _QUERY_ROWS, :].float() @ keys) * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        if mask is not None:
            rows = mask if mask.shape[-2] == 1 else mask[..., low : low + _QUERY_ROWS, :]
            scores = scores.masked_fill(~rows, float("-inf"))
        if sinks is not None:
            column = sinks.float().view(num_kv_heads, -1, 1, 1).expand(*scores.shape[:-1], 1)
            scores = torch.cat((scores, column), -1).softmax(-1)[..., :-1]
        else:
            scores = scores.softmax(-1)
        out.append(scores @ values)
    h = torch.cat(out, -2).permute(0, 3, 1, 2, 4)  # [num_seqs, num_queries, kv heads, group, dim]
    return h.reshape(num_seqs * num_queries, -1, v.shape[-1]).to(q.dtype)
