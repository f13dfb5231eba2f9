"""The reference of multi-head latent attention (MLA; DeepSeek-V2, arXiv:2405.04434, section 2.1).

Keys and values of all heads are products of one latent a token, which alone is cached. Because
scores are linear in the keys, a query can be multiplied by the key projection instead, and what it
attends to by the value projection afterwards: the *absorbed* form, multi-query attention over the
latents themselves. Few queries, and so all decoding, go that way; for many of one sequence it is
cheaper to expand the latents once, some heads at a time.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from tramontane.kernels.parts import Part, plan_parts, read
from tramontane.protocols.batch import ForwardBatch

_NUMBERS = 1 << 24
"""Scores, or numbers of expanded keys, held at once (64 MiB in float32)."""


class LatentStorage(Protocol):
    """What `latent_attention` needs of `tramontane.cache.PagedLatent`.

    Attributes:
        latents: [num_blocks, block_size, kv_lora_rank + rope_dim].
        scales: [num_blocks, block_size, 2] float32, factors of latents and keys, or None where they
            have none.
    """

    @property
    def latents(self) -> Tensor: ...
    @property
    def scales(self) -> Tensor | None: ...


def latent_attention(
    q_nope: Tensor,
    q_rope: Tensor,
    kv_b: Tensor,
    cache: LatentStorage,
    batch: ForwardBatch,
    *,
    scale: float,
) -> Tensor:
    """Causal attention of packed queries over their sequences' cached latents.

    The latents of this step must already be in the cache: normalized, and each followed by the
    rotated key that all heads share.

    Args:
        q_nope: [T, num_heads, nope_dim], the part of the queries that is not rotated.
        q_rope: [T, num_heads, rope_dim], rotated.
        kv_b: [num_heads, nope_dim + v_head_dim, kv_lora_rank]: what makes a latent each head's
            key, and below it its value.
        cache: the layer's latents.
        batch: which rows belong to which sequence, and its blocks.
        scale: factor on the scores.

    Returns:
        [T, num_heads, v_head_dim] in the type of ``q_nope``.
    """
    num_tokens, num_heads, nope_dim = q_nope.shape
    v_head_dim, rank = kv_b.shape[1] - nope_dim, kv_b.shape[2]
    # Expanding costs rank * (nope + v) products a cached token and head, and saves the difference
    # in width, 2 * rank against nope + v, for each query.
    worth_expanding = rank * (nope_dim + v_head_dim)
    saved = 2 * rank - nope_dim - v_head_dim
    out = q_nope.new_empty(num_tokens, num_heads, v_head_dim)
    for part in plan_parts(batch, 1, cache.latents.shape[1], None):
        rows = slice(None) if part.rows is None else part.rows
        seen = _seen(cache, rank, part, q_nope.dtype)  # [num_seqs, 1, length, rank + rope_dim]
        attend = _expanded if part.num_queries * saved > worth_expanding else _absorbed
        out[rows] = attend(q_nope[rows], q_rope[rows], kv_b, seen, part, scale)
    return out


def _seen(cache: LatentStorage, rank: int, part: Part, dtype: torch.dtype) -> Tensor:
    storage = cache.latents[:, None]  # as a cache of one head
    if cache.scales is None:
        return read(storage, None, part, dtype)
    factors = cache.scales[:, None].unbind(-1)
    both = (storage[..., :rank], storage[..., rank:])
    return torch.cat([read(x, f, part, dtype) for x, f in zip(both, factors, strict=True)], -1)


def _absorbed(
    q_nope: Tensor, q_rope: Tensor, kv_b: Tensor, seen: Tensor, part: Part, scale: float
) -> Tensor:
    num_rows, num_heads, nope_dim = q_nope.shape
    rank = kv_b.shape[-1]
    # [T, num_heads, rank + rope_dim]
    q = torch.cat(
        (torch.bmm(q_nope.transpose(0, 1), kv_b[:, :nope_dim]).transpose(0, 1), q_rope), -1
    )
    values = seen[..., :rank]
    if part.num_queries == 1:
        # The heads of a query are the rows of one product; nothing is repeated for them.
        h = F.scaled_dot_product_attention(q[:, None], seen, values, part.mask, scale=scale)
        h = h[:, 0]
    else:
        length = seen.shape[2]
        step = max(1, _NUMBERS // (num_heads * length))
        mask = _mask(part, length, seen.device)
        parts = []
        for low in range(0, num_rows, step):
            rows = q[low : low + step].reshape(1, 1, -1, q.shape[-1])
            visible = mask[low : low + step].repeat_interleave(num_heads, 0)
            h = F.scaled_dot_product_attention(rows, seen, values, visible, scale=scale)
            parts.append(h.view(-1, num_heads, rank))
        h = torch.cat(parts)
    out = torch.bmm(h.transpose(0, 1), kv_b[:, nope_dim:].transpose(1, 2))
    return out.transpose(0, 1)  # [T, num_heads, v_head_dim]


def _expanded(
    q_nope: Tensor, q_rope: Tensor, kv_b: Tensor, seen: Tensor, part: Part, scale: float
) -> Tensor:
    _, num_heads, nope_dim = q_nope.shape
    size, rank = kv_b.shape[1:]
    length, v_head_dim = seen.shape[2], size - nope_dim
    latents, k_rope = seen[0, 0, :, :rank], seen[0, 0, :, rank:]
    q = torch.cat((q_nope, q_rope), -1).transpose(0, 1)  # [num_heads, T, head_dim]
    # Queries, keys and values of one width take torch's fused road.
    width = max(q.shape[-1], v_head_dim)
    step = max(1, _NUMBERS // (length * (size + width)))
    done = []
    for low in range(0, num_heads, step):
        kv = latents @ kv_b[low : low + step].transpose(1, 2)  # [heads, length, nope + v]
        shared = k_rope.expand(kv.shape[0], -1, -1)
        k = torch.cat((kv[..., :nope_dim], shared), -1)
        h = F.scaled_dot_product_attention(
            _widened(q[low : low + step], width)[None],
            _widened(k, width)[None],
            _widened(kv[..., nope_dim:], width)[None],
            attn_mask=part.mask,
            is_causal=part.causal,
            scale=scale,
        )
        done.append(h[0, ..., :v_head_dim])
    return torch.cat(done).transpose(0, 1)


def _widened(x: Tensor, width: int) -> Tensor:
    return x if x.shape[-1] == width else F.pad(x, (0, width - x.shape[-1]))


def _mask(part: Part, length: int, device: torch.device) -> Tensor:
    """Which keys each query sees, bool [num_queries, length]."""
    if part.mask is not None:
        return part.mask
    everything = torch.ones(part.num_queries, length, dtype=torch.bool, device=device)
    return everything.tril_() if part.causal else everything
