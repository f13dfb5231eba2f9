"""The reference of every operator, in plain torch: the truth that faster kernels are tested by.

It runs on every device torch runs on, and is what is bound when no plug-in offers better.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from tramontane.kernels.bidirectional import bidirectional_attention
from tramontane.kernels.draw import draw
from tramontane.kernels.latent import latent_attention
from tramontane.kernels.parts import Part, plan_parts, read
from tramontane.kernels.penalize import penalize
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
        k_scales, v_scales: [num_blocks, num_kv_heads, block_size] float32, factors of the vectors
            in ``k`` and ``v``, or None where they have none.
    """

    @property
    def k(self) -> Tensor: ...
    @property
    def v(self) -> Tensor: ...
    @property
    def k_scales(self) -> Tensor | None: ...
    @property
    def v_scales(self) -> Tensor | None: ...


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
    for part in plan_parts(batch, num_kv_heads, block_size, window):
        mine = q if part.rows is None else q[part.rows]
        k = read(cache.k, cache.k_scales, part, q.dtype)  # [num_seqs, kv heads, length, head_dim]
        v = read(cache.v, cache.v_scales, part, q.dtype)
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


OPERATORS: dict[str, Any] = {
    "paged_attention": paged_attention,
    "latent_attention": latent_attention,
    "bidirectional_attention": bidirectional_attention,
    "packed_linear": packed_linear,
    "penalize": penalize,
    "draw": draw,
}
"""Every operator by name."""


def _written_out(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    part: Part,
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
