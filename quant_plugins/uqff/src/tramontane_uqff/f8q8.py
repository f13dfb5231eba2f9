"""F8Q8: blocks of 32 bytes with an 8-bit float as scale, a format of mistral.rs.

A block has 33 bytes: the scale as E4M3, which holds 448 times its value, and 32 signed integers.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from math import prod
from typing import Any, Self

import torch
from torch import Tensor

from tramontane.errors import ConfigError
from tramontane.nn import GroupAffineWeight
from tramontane.protocols import PackedWeight, joined_parts

BLOCK = 32
BLOCK_BYTES = 33
LARGEST = 448.0  # of E4M3; scales are stored so many times larger
_TYPE = "f8q8"
_CHUNK = 1 << 13  # blocks at a time
_SIGN = 0x80  # by which a signed byte becomes one from 0 up

_Affine = tuple[Tensor, Tensor, Tensor]


class F8Q8Weight(PackedWeight):
    """Blocks of one weight.

    Args:
        blocks: uint8, 33 bytes for every 32 numbers, row by row.
        shape: logical shape.

    Raises:
        ValueError: rows that are no whole blocks, or another count of bytes.
    """

    format = "f8q8"

    def __init__(self, blocks: Tensor, shape: Sequence[int]) -> None:
        shape = tuple(shape)
        if not shape or shape[-1] % BLOCK:
            raise ValueError(f"shape {list(shape)} does not have rows of whole blocks of {BLOCK}")
        row_bytes = shape[-1] // BLOCK * BLOCK_BYTES
        if blocks.dtype is not torch.uint8 or blocks.numel() != prod(shape[:-1]) * row_bytes:
            raise ValueError(
                f"{_TYPE} blocks of shape {list(shape)} take {prod(shape[:-1]) * row_bytes} "
                f"bytes, not {blocks.numel()} of {blocks.dtype}"
            )
        self._blocks: Tensor | None = blocks.view(*shape[:-1], row_bytes)
        self._restore: Callable[[Tensor], _Affine] | None = None
        self._nbytes, self._device = blocks.numel(), blocks.device
        self.shape = shape

    @property
    def blocks(self) -> Tensor:
        """[..., out, in / 32 * 33] uint8; made anew on each use once they were released."""
        if self._blocks is not None:
            return self._blocks
        assert self._restore is not None
        return _joined(*self._restore(torch.arange(self.shape[0])))

    @property
    def facts(self) -> Mapping[str, Hashable]:
        """See `tramontane.protocols.PackedWeight.facts`."""
        return {"bits": 8, "group_size": BLOCK, "groups": "columns", "columns": self.shape[-1]}

    @property
    def nbytes(self) -> int:
        return self._nbytes

    @property
    def device(self) -> torch.device:
        return self._device

    def affine(self) -> GroupAffineWeight:
        """The same with codes from 1 to 255 and a bias."""
        parts = self.blocks.view(*self.shape[:-1], -1, BLOCK_BYTES)
        scales = _scales(parts)
        codes = parts[..., 1:] ^ _SIGN
        return GroupAffineWeight(codes.flatten(-2), scales, -128 * scales, bits=8)

    def release(self, restore: Callable[[Tensor], _Affine]) -> None:
        """See `tramontane.protocols.PackedWeight.release`. Done with a matrix in memory that is
        its own, not with a view of a file or of a stack."""
        blocks = self.blocks
        if blocks.dim() == 2 and blocks.untyped_storage().nbytes() == blocks.nbytes:
            self._blocks, self._restore = None, restore

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        flat = self.blocks.reshape(-1, BLOCK_BYTES)
        out = torch.empty(flat.shape[0], BLOCK, dtype=dtype, device=self.device)
        for start in range(0, flat.shape[0], _CHUNK):
            part = flat[start : start + _CHUNK]
            codes = part[:, 1:].contiguous().view(torch.int8)
            out[start : start + _CHUNK] = codes * _scales(part)[:, None]
        return out.view(self.shape)

    def rows(self, start: int, stop: int) -> Self:
        part = self.blocks[start:stop]
        return type(self)(part, (part.shape[0], *self.shape[1:]))

    def gather(self, index: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        index = index.to(self.device)
        if self._restore is None:
            chosen = self.blocks.index_select(0, index)
        else:
            chosen = _joined(*self._restore(index))
        return type(self)(chosen, (chosen.shape[0], *self.shape[1:])).dequantize(dtype)

    def to(self, device: torch.device) -> Self:
        if self.device == torch.device(device):
            return self
        return type(self)(self.blocks.to(device), self.shape)

    @classmethod
    def concat(cls, parts: Sequence[Self]) -> Self:
        if not parts or any(part.shape[1:] != parts[0].shape[1:] for part in parts):
            raise ValueError("weights of different widths cannot become one")
        blocks = torch.cat([part.blocks for part in parts])
        return cls(blocks, (blocks.shape[0], *parts[0].shape[1:]))


def _scales(blocks: Tensor) -> Tensor:
    """Factors of blocks [..., 33]: [...] float32."""
    return blocks[..., 0].contiguous().view(torch.float8_e4m3fn).float() / LARGEST


def _joined(codes: Tensor, scales: Tensor, _biases: Tensor) -> Tensor:
    """The blocks [N, in / 32 * 33] of which `F8Q8Weight.affine` consists."""
    stored = (scales.float() * LARGEST).to(torch.float8_e4m3fn).view(torch.uint8)
    parts = codes.view(*scales.shape, BLOCK) ^ _SIGN
    return torch.cat((stored.unsqueeze(-1), parts), -1).flatten(-2)


class F8Q8Quantizer:
    """Packs with the largest number of a block at code 127."""

    name = _TYPE

    def quantize(
        self, weight: Tensor, type_name: str = _TYPE, *, importance: Tensor | None = None
    ) -> F8Q8Weight:
        """Pack ``weight`` [..., in].

        Raises:
            ConfigError: an unknown type, rows that are no multiples of 32, or numbers that are
                not finite.
        """
        if self.packed_bytes(weight.shape, type_name) is None:
            raise ConfigError(
                f"a weight of shape {list(weight.shape)} cannot be {_TYPE}: rows must be "
                f"multiples of {BLOCK}"
            )
        flat = weight.detach().reshape(-1, BLOCK)
        blocks = torch.empty(flat.shape[0], BLOCK_BYTES, dtype=torch.uint8, device=flat.device)
        for start in range(0, flat.shape[0], _CHUNK):
            part = slice(start, start + _CHUNK)
            blocks[part] = _encoded(flat[part].float())
        return F8Q8Weight(blocks, weight.shape)

    def packed_bytes(self, shape: Sequence[int], type_name: str = _TYPE) -> int | None:
        """Bytes that a weight of ``shape`` takes; None where its rows are no whole blocks.

        Raises:
            ConfigError: an unknown type.
        """
        if type_name.lower() != _TYPE:
            raise ConfigError(f"{type_name!r} is no type of {_TYPE}; its only one is {_TYPE!r}")
        if len(shape) < 2 or shape[-1] % BLOCK:
            return None
        return prod(shape) // BLOCK * BLOCK_BYTES

    def serialize(self, weight: PackedWeight) -> dict[str, Any]:
        """``weight`` [bytes] uint8, ``num_blocks`` and ``shape``."""
        if not isinstance(weight, F8Q8Weight):
            raise ConfigError(f"{weight.format} is not {_TYPE}")
        return {
            "weight": weight.blocks.reshape(-1),
            "num_blocks": weight.blocks.numel() // BLOCK_BYTES,
            "shape": weight.shape,
        }

    def deserialize(self, parts: Mapping[str, Any]) -> F8Q8Weight:
        """See `tramontane.protocols.Quantizer.deserialize`."""
        with joined_parts(_TYPE):
            weight = F8Q8Weight(parts["weight"], parts["shape"])
            if parts["num_blocks"] * BLOCK_BYTES != weight.nbytes:
                raise ValueError(f"num_blocks is {parts['num_blocks']} for {weight.nbytes} bytes")
            return weight


def _encoded(values: Tensor) -> Tensor:
    """[N, 32] float32 to [N, 33] bytes."""
    if not bool(values.isfinite().all()):
        raise ConfigError(f"a weight with numbers that are not finite cannot be {_TYPE}")
    scale = values.abs().amax(-1, keepdim=True) / 127
    codes = (values / torch.where(scale > 0, scale, 1.0)).round().clamp(-127, 127)
    stored = (scale * LARGEST).clamp(max=LARGEST).to(torch.float8_e4m3fn)
    return torch.cat((stored.view(torch.uint8), codes.to(torch.int8).view(torch.uint8)), -1)
