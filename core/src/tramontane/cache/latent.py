"""`PagedLatent`: what multi-head latent attention keeps of each token, in blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from tramontane.cache.paged import zeros
from tramontane.kernels.eight_bit import LARGEST, SCALE, quantize, raw


class PagedLatent:
    """One layer's latents (DeepSeek-V2, arXiv:2405.04434, section 2.1).

    Blocks and slots are those of `tramontane.cache.PagedKV`. A token takes the one vector that the
    keys and values of all heads are made of, and the one rotated key they share.

    Attributes:
        latents: [num_blocks, block_size, kv_lora_rank + rope_dim].
        scales: [num_blocks, block_size, 2] float32 factors of latent and key where ``latents`` is
            of an 8-bit type (`tramontane.kernels.eight_bit`), else None.
        block_size: tokens a block.
    """

    def __init__(
        self,
        *,
        num_blocks: int,
        block_size: int,
        kv_lora_rank: int,
        rope_dim: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.block_size = block_size
        self._rank = kv_lora_rank
        shape = (num_blocks, block_size, kv_lora_rank + rope_dim)
        self.latents = zeros(shape, dtype, torch.device(device))
        self.scales: Tensor | None = None
        if dtype in LARGEST:
            self.scales = zeros((num_blocks, block_size, 2), SCALE, torch.device(device))
        self._parts = [raw(self.latents), *([] if self.scales is None else [self.scales])]
        self._by_slot = [part.flatten(0, 1) for part in self._parts]  # [num_slots, ...]

    @property
    def num_blocks(self) -> int:
        return self.latents.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes reserved. On a CPU, pages that were never written take no memory."""
        return sum(part.nbytes for part in self._parts)

    def write(self, latent: Tensor, k_rope: Tensor, slots: Tensor) -> None:
        """Store new tokens.

        Args:
            latent: [T, kv_lora_rank], normalized.
            k_rope: [T, rope_dim], rotated.
            slots: [T] int64, all different.
        """
        dtype = self.latents.dtype
        if self.scales is None:
            parts = [torch.cat((latent, k_rope), -1).to(dtype)]
        else:
            codes, scales = zip(*(quantize(x, dtype) for x in (latent, k_rope)), strict=True)
            parts = [torch.cat([raw(part) for part in codes], -1), torch.stack(scales, -1)]
        for mine, new in zip(self._by_slot, parts, strict=True):
            mine.index_copy_(0, slots, new)

    def copy_blocks(self, sources: Tensor, destinations: Tensor) -> None:
        """Copy whole blocks; both are [N] int64 and no block is in both."""
        for part in self._parts:
            part[destinations] = part[sources]
