"""`PagedKV`: K and V of one layer, in blocks that sequences own through their block tables."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tramontane.kernels.eight_bit import LARGEST, SCALE, quantize, raw

_ALIGNMENT = 64  # bytes: one cache line, one AVX-512 register


class PagedKV:
    """One attention layer's keys and values.

    Block ``b``, offset ``o`` is *slot* ``b * block_size + o``. Within a block one head's tokens
    lie next to each other, so that attention streams over them. Who owns which block is the
    engine's business.

    Attributes:
        k: [num_blocks, num_kv_heads, block_size, head_dim].
        v: [num_blocks, num_kv_heads, block_size, v_head_dim].
        k_scales, v_scales: [num_blocks, num_kv_heads, block_size] float32 factors of the vectors in
            ``k`` and ``v`` where they are of an 8-bit type (`tramontane.kernels.eight_bit`), else
            None.
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
        self.k_scales: Tensor | None = None
        self.v_scales: Tensor | None = None
        if dtype in LARGEST:
            self.k_scales = zeros((num_blocks, num_kv_heads, block_size), SCALE, device)
            self.v_scales = zeros((num_blocks, num_kv_heads, block_size), SCALE, device)
        scales = [t for t in (self.k_scales, self.v_scales) if t is not None]
        self._parts = [raw(self.k), raw(self.v), *scales]
        # [num_blocks, block_size, num_kv_heads, ...]
        self._by_slot = [part.transpose(1, 2) for part in self._parts]

    @property
    def num_blocks(self) -> int:
        return self.k.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes reserved. On a CPU, pages that were never written take no memory."""
        return sum(part.nbytes for part in self._parts)

    def write(self, k: Tensor, v: Tensor, slots: Tensor) -> None:
        """Store new tokens.

        Args:
            k: [T, num_kv_heads, head_dim].
            v: [T, num_kv_heads, v_head_dim].
            slots: [T] int64, all different.
        """
        blocks = torch.div(slots, self.block_size, rounding_mode="floor")
        offsets = slots - blocks * self.block_size
        if self.k_scales is None:
            parts = [k.to(self.k.dtype), v.to(self.v.dtype)]
        else:
            (k, k_scales), (v, v_scales) = quantize(k, self.k.dtype), quantize(v, self.v.dtype)
            parts = [raw(k), raw(v), k_scales, v_scales]
        for mine, new in zip(self._by_slot, parts, strict=True):
            mine.index_put_((blocks, offsets), new)

    def copy_blocks(self, sources: Tensor, destinations: Tensor) -> None:
        """Copy whole blocks; both are [N] int64 and no block is in both."""
        for part in self._parts:
            part[destinations] = part[sources]


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros that, on a CPU, occupy memory only once they are written: ``torch.zeros`` would touch
    every page at once, the allocator behind ``numpy.zeros`` leaves that to the kernel."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    nbytes = int(np.prod(shape)) * dtype.itemsize
    raw = np.zeros(nbytes + _ALIGNMENT, dtype=np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return torch.from_numpy(raw[start : start + nbytes]).view(dtype).view(shape)
