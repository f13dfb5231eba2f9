"""Reference of ``bidirectional_attention``: every token of a text sees those after it as well."""

from __future__ import annotations

from itertools import groupby
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from tramontane.protocols.batch import ForwardBatch


class PackedStorage(Protocol):
    """What `bidirectional_attention` needs of `tramontane.cache.TransientKV`.

    Attributes:
        k: [T, num_kv_heads, head_dim].
        v: [T, num_kv_heads, v_head_dim].
    """

    @property
    def k(self) -> Tensor: ...
    @property
    def v(self) -> Tensor: ...


def bidirectional_attention(
    q: Tensor,
    cache: PackedStorage,
    batch: ForwardBatch,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attention among the tokens of each sequence, all of which are in this step.

    Neighbours of equal length are computed in one go, so a caller does well to sort by length.

    Args:
        q: [T, num_heads, head_dim].
        cache: this step's keys and values.
        batch: which rows belong to which sequence.
        scale: factor on the scores.
        window: a query at position p sees positions above ``p - window`` and below
            ``p + window`` only.
        softcap, sinks: None; no encoder has them.

    Returns:
        [T, num_heads, v_head_dim] in the type of ``q``.
    """
    assert softcap is None, "no encoder has soft caps"
    assert sinks is None, "no encoder has sinks"
    num_heads, num_kv_heads = q.shape[1], cache.k.shape[1]
    out = q.new_empty(q.shape[0], num_heads, cache.v.shape[-1])
    start = 0
    for length, members in groupby(batch.query_lens):
        count = len(list(members))
        rows = slice(start, start + count * length)
        start = rows.stop
        # [count, heads, length, dim]
        mine, k, v = (
            t[rows].view(count, length, *t.shape[1:]).transpose(1, 2) for t in (q, cache.k, cache.v)
        )
        h = F.scaled_dot_product_attention(
            mine,
            k,
            v,
            attn_mask=_band(length, window, q.device),
            scale=scale,
            enable_gqa=num_heads != num_kv_heads,
        )
        out[rows] = h.transpose(1, 2).flatten(0, 1)
    return out


def _band(length: int, window: int | None, device: torch.device) -> Tensor | None:
    """Who sees whom, [length, length]; None where everybody sees everybody."""
    if window is None or length <= window:
        return None
    place = torch.arange(length, device=device)
    return (place[:, None] - place).abs() < window
