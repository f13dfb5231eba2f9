"""What attention layers declare in ``cache_specs(config)``.

A layer with another kind of memory brings its own spec class with the same three methods; engine
and planner ask for nothing else.
"""

from __future__ import annotations

import torch
from attrs import field, frozen, validators

from tramontane.cache.latent import PagedLatent
from tramontane.cache.paged import PagedKV
from tramontane.kernels.eight_bit import LARGEST, SCALE

_positive = validators.ge(1)


def _scale_bytes(dtype: torch.dtype) -> int:
    """Bytes of the two scales that a token's vectors have where they are stored in 8 bits."""
    return 2 * SCALE.itemsize if dtype in LARGEST else 0


@frozen
class FullAttention:
    """Every token attends to all earlier ones.

    Attributes:
        num_kv_heads: heads of K and V.
        head_dim: width of one K head.
        v_head_dim: width of one V head; None for ``head_dim``.
    """

    num_kv_heads: int = field(validator=_positive)
    head_dim: int = field(validator=_positive)
    v_head_dim: int | None = field(default=None, validator=validators.optional(_positive))

    def bytes_per_token(self, dtype: torch.dtype) -> int:
        v_head_dim = self.head_dim if self.v_head_dim is None else self.v_head_dim
        numbers = (self.head_dim + v_head_dim) * dtype.itemsize
        return self.num_kv_heads * (numbers + _scale_bytes(dtype))

    def bytes_per_seq(self, dtype: torch.dtype) -> int:
        return 0

    def allocate(
        self,
        *,
        num_blocks: int,
        block_size: int,
        num_seqs: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> PagedKV:
        return PagedKV(
            num_blocks=num_blocks,
            num_kv_heads=self.num_kv_heads,
            block_size=block_size,
            head_dim=self.head_dim,
            v_head_dim=self.v_head_dim,
            dtype=dtype,
            device=device,
        )


@frozen
class SlidingAttention(FullAttention):
    """Every token attends to the last ``window`` ones, itself among them.

    All layers of a model share one block table, so tokens that have left the window keep their
    place until the sequence ends; the window is applied where attention is computed.

    Attributes:
        window: tokens that stay visible.
    """

    window: int = field(kw_only=True, validator=_positive)


@frozen
class LatentAttention:
    """Multi-head latent attention: every token attends to all earlier ones, and of each only a
    latent and one rotated key are kept, whatever the number of heads (arXiv:2405.04434, table 1).

    Attributes:
        kv_lora_rank: width of the latent.
        rope_dim: width of the rotated key.
    """

    kv_lora_rank: int = field(validator=_positive)
    rope_dim: int = field(validator=_positive)

    def bytes_per_token(self, dtype: torch.dtype) -> int:
        return (self.kv_lora_rank + self.rope_dim) * dtype.itemsize + _scale_bytes(dtype)

    def bytes_per_seq(self, dtype: torch.dtype) -> int:
        return 0

    def allocate(
        self,
        *,
        num_blocks: int,
        block_size: int,
        num_seqs: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> PagedLatent:
        return PagedLatent(
            num_blocks=num_blocks,
            block_size=block_size,
            kv_lora_rank=self.kv_lora_rank,
            rope_dim=self.rope_dim,
            dtype=dtype,
            device=device,
        )
