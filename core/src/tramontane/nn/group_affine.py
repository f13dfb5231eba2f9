"""Weights of few bits with a scale and an offset a group: what AFQ, GPTQ, AWQ and others store.

``w = code * scale + bias`` over ``group_size`` neighbouring columns of a row. The codes of a row
are one little-endian stream of bits: code ``j`` occupies bits ``j * bits`` to ``(j + 1) * bits``,
as in MLX (https://ml-explore.github.io/mlx, ``mlx.core.quantize``).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from math import gcd
from typing import Self

import torch
from torch import Tensor

from tramontane.protocols.quantizer import PackedWeight

# Elements decoded at a time, so that temporaries stay small.
_CHUNK = 1 << 20


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """Codes [..., n] below ``2 ** bits`` as a stream of bits [..., n * bits / 8] uint8.

    Raises:
        ValueError: a row does not fill whole bytes.
    """
    if bits == 8:
        return codes.to(torch.uint8)
    count, size = _period(bits)
    n = codes.shape[-1]
    if n * bits % 8:
        raise ValueError(f"{n} codes of {bits} bits do not fill whole bytes")
    padded = torch.nn.functional.pad(codes.to(torch.int64), (0, -n % count))
    rows = padded.view(*codes.shape[:-1], -1, count)
    words = rows << (torch.arange(count, device=codes.device) * bits)
    shifts = torch.arange(size, device=codes.device) * 8
    data: Tensor = (words.sum(-1, keepdim=True) >> shifts & 0xFF).to(torch.uint8)
    return data.flatten(-2)[..., : n * bits // 8].contiguous()


def unpack_bits(data: Tensor, bits: int) -> Tensor:
    """The inverse of `pack_bits`: [..., n] uint8 of a stream [..., n * bits / 8] uint8."""
    if bits == 8:
        return data
    count, size = _period(bits)
    n = data.shape[-1] * 8 // bits
    steps = torch.arange(count, device=data.device) * bits
    if size == 1:
        return (data.unsqueeze(-1) >> steps.to(torch.uint8) & (1 << bits) - 1).flatten(-2)
    padded = torch.nn.functional.pad(data, (0, -data.shape[-1] % size))
    parts = padded.view(*data.shape[:-1], -1, size)
    parts = parts.to(torch.int32 if size < 4 else torch.int64)
    words = (parts << (torch.arange(size, device=data.device) * 8).to(parts.dtype)).sum(-1)
    codes: Tensor = words.unsqueeze(-1) >> steps & (1 << bits) - 1
    return codes.to(torch.uint8).flatten(-2)[..., :n]


def _period(bits: int) -> tuple[int, int]:
    """After how many codes, and bytes, a stream is at the edge of a byte again."""
    if not 1 <= bits <= 8:
        raise ValueError(f"codes have 1 to 8 bits, not {bits}")
    shared = gcd(8, bits)
    return 8 // shared, bits // shared


def column_order(groups: Tensor, columns: int, num_groups: int) -> Tensor | None:
    """The columns sorted by their group, for the ``order`` of `GroupAffineWeight`; None when they
    are so already.

    Args:
        groups: [columns] group of each column, whole numbers.

    Raises:
        ValueError: groups are not equally large, or out of range.
    """
    if groups.shape != (columns,) or groups.dtype.is_floating_point:
        raise ValueError(f"g_idx has shape {list(groups.shape)} for {columns} columns")
    groups = groups.long()
    size = columns // max(1, num_groups)
    expected = torch.arange(columns, device=groups.device) // max(1, size)
    if torch.equal(groups, expected):
        return None
    order = groups.argsort(stable=True)
    if not torch.equal(groups[order], expected):
        raise ValueError(f"g_idx does not part {columns} columns into {num_groups} equal groups")
    return order


_Parts = tuple[Tensor, Tensor, Tensor]


class GroupAffineWeight(PackedWeight):
    """Codes with a scale and a bias a group.

    Args:
        codes: [*leading, out, in * bits / 8] uint8, each row a stream of bits.
        scales, biases: [*leading, out, in / group_size], any float dtype.
        bits: 1 to 8.
        order: [in] column that each code of a row belongs to, where a file stores columns by
            importance (``desc_act`` of GPTQ); None for columns in order.

    Raises:
        ValueError: the shapes do not fit each other.
    """

    def __init__(
        self,
        codes: Tensor,
        scales: Tensor,
        biases: Tensor,
        *,
        bits: int,
        order: Tensor | None = None,
    ) -> None:
        _period(bits)
        columns, rest = divmod(codes.shape[-1] * 8, bits)
        groups = scales.shape[-1]
        if codes.dtype is not torch.uint8 or rest or not groups or not columns or columns % groups:
            raise ValueError(
                f"{codes.dtype} codes of {bits} bits in rows of {codes.shape[-1]} bytes do not "
                f"make {groups} equal groups"
            )
        if scales.shape != biases.shape or scales.shape[:-1] != codes.shape[:-1]:
            raise ValueError(
                f"codes {list(codes.shape)}, scales {list(scales.shape)} and biases "
                f"{list(biases.shape)} do not belong together"
            )
        if order is not None and order.shape != (columns,):
            raise ValueError(f"the order of {columns} columns has shape {list(order.shape)}")
        self._parts: _Parts | None = (codes, scales, biases)
        self._restore: Callable[[Tensor], _Parts] | None = None
        self._nbytes, self._device = sum(t.nbytes for t in self._parts), codes.device
        self.bits, self.group_size = bits, columns // groups
        self.order = order
        self.shape = (*codes.shape[:-1], columns)
        self.format = f"affine.{bits}"

    def __repr__(self) -> str:
        return (
            f"GroupAffineWeight(bits={self.bits}, group_size={self.group_size}, "
            f"shape={list(self.shape)})"
        )

    @property
    def facts(self) -> Mapping[str, Hashable]:
        """See `tramontane.protocols.PackedWeight.facts`."""
        return {
            "bits": self.bits,
            "group_size": self.group_size,
            "groups": "columns",
            "columns": self.shape[-1],
        }

    @property
    def nbytes(self) -> int:
        order = 0 if self.order is None else self.order.nbytes
        return self._nbytes + order

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def parts(self) -> _Parts:
        """Codes, scales and biases; made anew on each use once they were released."""
        if self._parts is not None:
            return self._parts
        assert self._restore is not None
        return self._restore(torch.arange(self.shape[0]))

    @property
    def codes(self) -> Tensor:
        return self.parts[0]

    @property
    def scales(self) -> Tensor:
        return self.parts[1]

    @property
    def biases(self) -> Tensor:
        return self.parts[2]

    def release(self, restore: Callable[[Tensor], _Parts]) -> None:
        """See `tramontane.protocols.PackedWeight.release`. Done with a matrix in memory that is
        its own, not with a view of a file or of a stack."""
        codes = self.parts[0]
        if codes.dim() == 2 and codes.untyped_storage().nbytes() == codes.nbytes:
            self._parts, self._restore = None, restore

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        codes, scales, biases = (part.flatten(0, -2) for part in self.parts)  # [rows, …]
        whole = torch.empty(codes.shape[0], self.shape[-1], dtype=dtype, device=self.device)
        step = max(1, _CHUNK // max(1, self.shape[-1]))
        for start in range(0, codes.shape[0], step):
            part = slice(start, start + step)
            q = unpack_bits(codes[part], self.bits)
            q = q.view(q.shape[0], -1, self.group_size)
            values = torch.addcmul(
                biases[part].float().unsqueeze(-1), q.float(), scales[part].float().unsqueeze(-1)
            ).flatten(-2)
            if self.order is None:
                whole[part] = values.to(dtype)
            else:
                whole[part, self.order] = values.to(dtype)
        return whole.view(self.shape)

    def rows(self, start: int, stop: int) -> Self:
        return self._with(*(part[start:stop] for part in self.parts))

    def gather(self, index: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        index = index.to(self.device)
        if self._restore is not None:
            return self._with(*self._restore(index)).dequantize(dtype)
        chosen = (part.index_select(0, index) for part in self.parts)
        return self._with(*chosen).dequantize(dtype)

    def to(self, device: torch.device) -> Self:
        if self.device == torch.device(device):
            return self
        moved = self._with(*(part.to(device) for part in self.parts))
        if self.order is not None:
            moved.order = self.order.to(device)
        return moved

    @classmethod
    def concat(cls, parts: Sequence[Self]) -> Self:
        first = parts[0]
        for part in parts[1:]:
            alike = part.format == first.format and part.group_size == first.group_size
            if not alike or part.shape[1:] != first.shape[1:] or not _same(part.order, first.order):
                raise ValueError(f"{part!r} cannot follow {first!r} in one weight")
        return first._with(
            torch.cat([p.codes for p in parts]),
            torch.cat([p.scales for p in parts]),
            torch.cat([p.biases for p in parts]),
        )

    def _with(self, codes: Tensor, scales: Tensor, biases: Tensor) -> Self:
        return type(self)(codes, scales, biases, bits=self.bits, order=self.order)


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one, other)
