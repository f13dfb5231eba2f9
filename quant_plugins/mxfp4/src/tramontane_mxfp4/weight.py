"""`Mxfp4Weight`: 4-bit floats in blocks of 32 that share a power of two.

Format: OCP Microscaling Formats (MX) 1.0, sections 5.3.3 (E2M1) and 5.4.1 (E8M0); laid out as in
Hugging Face checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from tramontane.protocols import PackedWeight

BLOCK = 32
"""Numbers that share a scale."""

MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""What the lower three bits of a code mean; the fourth is the sign."""

SCALE_BIAS = 127

# Bytes of codes decoded at a time: temporaries stay in a core's cache, or fill a GPU.
_CHUNK_CPU = 1 << 17
_CHUNK_DEVICE = 1 << 23


class Mxfp4Weight(PackedWeight):
    """Codes and scales of one weight; often views of a mapped file, not always contiguous.

    Attributes:
        format: ``"mxfp4.e2m1"``.
        shape: logical shape, torch order.
        codes: [*shape[:-1], shape[-1] / 32, 16] uint8; a byte holds two neighbours, the first in
            its lower half.
        scales: [*shape[:-1], shape[-1] / 32] uint8; a block's numbers are multiplied by
            ``2 ** (scale - 127)``, and 255 makes them NaN.

    Args:
        codes, scales: as above.
        on_release: called by `release`.

    Raises:
        ValueError: dtypes or shapes that do not go together.
    """

    format = "mxfp4.e2m1"

    def __init__(
        self, codes: Tensor, scales: Tensor, *, on_release: Callable[[], None] | None = None
    ) -> None:
        if codes.dtype != torch.uint8 or scales.dtype != torch.uint8:
            raise ValueError(f"codes and scales are bytes, not {codes.dtype} and {scales.dtype}")
        if codes.dim() < 3 or codes.shape[-1] != BLOCK // 2 or codes.shape[:-1] != scales.shape:
            raise ValueError(
                f"codes of shape {list(codes.shape)} and scales of shape {list(scales.shape)} are "
                f"not [..., rows, blocks, {BLOCK // 2}] and [..., rows, blocks]"
            )
        self.codes, self.scales = codes, scales
        self.shape = (*scales.shape[:-1], scales.shape[-1] * BLOCK)
        self._on_release = on_release

    def __repr__(self) -> str:
        return f"Mxfp4Weight(shape={list(self.shape)}, device={self.device})"

    @property
    def nbytes(self) -> int:
        return self.codes.numel() + self.scales.numel()

    @property
    def device(self) -> torch.device:
        return self.codes.device

    @property
    def blocks(self) -> Tensor:
        """The same as ggml's MXFP4 blocks, [*shape[:-1], blocks * 17] uint8: a copy, made anew on
        each call. There the scale comes first, and a byte holds numbers that are 16 apart."""
        low, high = self.codes & 0xF, self.codes >> 4
        codes = torch.stack((low, high), -1).flatten(-2)  # one a byte, in order
        packed = codes[..., : BLOCK // 2] | codes[..., BLOCK // 2 :] << 4
        return torch.cat((self.scales[..., None], packed), -1).flatten(-2)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return _decoded(self.codes, self.scales, dtype).view(self.shape)

    def rows(self, start: int, stop: int) -> Self:
        return self.part(slice(start, stop))

    def part(self, rows: slice, axis: int = 0) -> Self:
        if not 0 <= axis < len(self.shape) - 1:
            raise ValueError(f"blocks lie along the last axis, {self.format} cannot be cut there")
        index = (slice(None),) * axis + (rows,)
        return type(self)(self.codes[index], self.scales[index], on_release=self._on_release)

    def gather(self, index: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        index = index.to(self.device)
        codes, scales = self.codes.index_select(0, index), self.scales.index_select(0, index)
        return _decoded(codes, scales, dtype).view(-1, *self.shape[1:])

    def to(self, device: torch.device) -> Self:
        if self.device == torch.device(device):
            return self
        return type(self)(self.codes.to(device), self.scales.to(device))

    def release(self, restore: Callable[[Tensor], Tensor] | None = None) -> None:
        """Let the pages of a mapped file leave memory, for a kernel that has made a form of its
        own. They come back from the file when somebody touches them again."""
        if self._on_release is not None:
            self._on_release()

    @classmethod
    def concat(cls, parts: Sequence[Self]) -> Self:
        if not parts:
            raise ValueError("there is nothing to concatenate")
        for part in parts[1:]:
            if part.format != parts[0].format or part.shape[1:] != parts[0].shape[1:]:
                raise ValueError(f"{part!r} cannot follow {parts[0]!r} in one weight")
        return cls(torch.cat([p.codes for p in parts]), torch.cat([p.scales for p in parts]))


@cache
def _pairs(device: torch.device) -> Tensor:
    """What each byte of codes means, [256, 2] float32."""
    values = torch.tensor([*MAGNITUDES, *(-m for m in MAGNITUDES)])
    byte = torch.arange(256)
    return torch.stack((values[byte & 0xF], values[byte >> 4]), -1).to(device)


@cache
def _powers(device: torch.device) -> Tensor:
    """What each scale means, [256] float32; exact, the subnormal 2^-127 included."""
    exponents = torch.arange(256, dtype=torch.float64) - SCALE_BIAS
    powers = torch.exp2(exponents)
    powers[255] = torch.nan
    return powers.float().to(device)


def _decoded(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """[..., blocks, 16] and [..., blocks] to [N, 32] of ``dtype``, some blocks at a time."""
    pairs, powers = _pairs(codes.device), _powers(codes.device)

    def decode(codes: Tensor, scales: Tensor) -> Tensor:
        values = F.embedding(codes.int(), pairs).view(-1, BLOCK)
        return (values * powers[scales.int()][:, None]).to(dtype)

    flat, flat_scales = codes.reshape(-1, BLOCK // 2), scales.reshape(-1)
    step = (_CHUNK_CPU if codes.device.type == "cpu" else _CHUNK_DEVICE) // (BLOCK // 2)
    if flat.shape[0] <= step:
        return decode(flat, flat_scales)
    out = torch.empty(flat.shape[0], BLOCK, dtype=dtype, device=codes.device)
    for start in range(0, flat.shape[0], step):
        part = slice(start, start + step)
        out[part] = decode(flat[part], flat_scales[part])
    return out
