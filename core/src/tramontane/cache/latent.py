"""`PagedLatent`: what multi-head latent attention keeps of each token, in blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from tramontane.cache.paged import zeros


class PagedLatent:
    """One layer's latents (DeepSeek-V2, arXiv:2405.04434, section 2.1).

    Blocks and slots are those of `tramontane.cache.PagedKV`. A token takes the one vector that the
    keys and values of all heads are made of, and the one rotated key they share.

    Attributes:
        latents: [num_blocks, block_size, kv_lora_rank + rope_dim].
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
        self._by_slot = self.latents.flatten(0, 1)  # [num_blocks * block_size, …]

    @property
    def num_blocks(self) -> int:
        return self.latents.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes reserved. On a CPU, pages that were never written take no memory."""
        return self.latents.nbytes

    def write(self, latent: Tensor, k_rope: Tensor, slots: Tensor) -> None:
        """Store new tokens.

        Args:
            latent: [T, kv_lora_rank], normalized.
            k_rope: [T, rope_dim], rotated.
            slots: [T] int64, all different.
        """
        both = torch.cat((latent, k_rope), -1)
        self._by_slot.index_copy_(0, slots, both.to(self.latents.dtype))

    def copy_blocks(self, sources: Tensor, destinations: Tensor) -> None:
        """Copy whole blocks; both are [N] int64 and no block is in both."""
        self.latents[destinations] = self.latents[sources]
