"""`PagedKV`: K and V of one layer, in blocks that sequences own through their block tables."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_ALIGNMENT = 64  # bytes: one cache line, one AVX-512 register


class PagedKV:
    """One attention layer's keys and values.

    Block ``b``, offset ``o`` is *slot* ``b * block_size + o``. Within a block one head's tokens
    lie next to each other, so that attention streams over them. Who owns which block is the
    engine's business.

    Attributes:
        k: [num_blocks, num_kv_heads, block_size, head_dim].
        v: [num_blocks, num_kv_heads, block_size, v_head_dim].
        block_size: tokens a block.
    """

    def __init__(
        self,
        *,
        num_blocks: int,
        num_kv_heads: int,
        block_size: int,
        head_dim: int,
        v_head_dim: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        device = torch.device(device)
        v_head_dim = head_dim if v_head_dim is None else v_head_dim
        self.block_size = block_size
        self.k = zeros((num_blocks, num_kv_heads, block_size, head_dim), dtype, device)
        self.v = zeros((num_blocks, num_kv_heads, block_size, v_head_dim), dtype, device)
        self._k_by_slot = self.k.transpose(1, 2)  # [num_blocks, block_size, num_kv_heads, head_dim]
        self._v_by_slot = self.v.transpose(1, 2)

    @property
    def num_blocks(self) -> int:
        return self.k.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes reserved. On a CPU, pages that were never written take no memory."""
        return self.k.nbytes + self.v.nbytes

    def write(self, k: Tensor, v: Tensor, slots: Tensor) -> None:
        """Store new tokens.

        Args:
            k: [T, num_kv_heads, head_dim].
            v: [T, num_kv_heads, v_head_dim].
            slots: [T] int64, all different.
        """
        blocks = torch.div(slots, self.block_size, rounding_mode="floor")
        offsets = slots - blocks * self.block_size
        self._k_by_slot.index_put_((blocks, offsets), k.to(self.k.dtype))
        self._v_by_slot.index_put_((blocks, offsets), v.to(self.v.dtype))

    def copy_blocks(self, sources: Tensor, destinations: Tensor) -> None:
        """Copy whole blocks; both are [N] int64 and no block is in both."""
        self.k[destinations] = self.k[sources]
        self.v[destinations] = self.v[sources]


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros that, on a CPU, occupy memory only once they are written: ``torch.zeros`` would touch
    every page at once, the allocator behind ``numpy.zeros`` leaves that to the kernel."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    nbytes = int(np.prod(shape)) * dtype.itemsize
    raw = np.zeros(nbytes + _ALIGNMENT, dtype=np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return torch.from_numpy(raw[start : start + nbytes]).view(dtype).view(shape)
