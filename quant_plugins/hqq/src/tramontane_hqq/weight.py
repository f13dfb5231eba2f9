"""`HqqWeight`: codes with a scale and a zero a group, groups across rows or along them.

Format: https://github.com/mobiusml/hqq. The weight is laid out anew as a matrix of groups,
``[group_size, groups]`` with axis 0, where a column is a group, and ``[groups, group_size]`` with
axis 1.
``w = (code - zero) * scale``. Rows of that matrix share bytes (words, for 3 bits) with rows far
away: the first part of the rows lies in the highest bits.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from math import prod
from typing import Self

import torch
from torch import Tensor

from tramontane.nn import GroupAffineWeight, pack_bits
from tramontane.protocols import PackedWeight

WORDS = {1: torch.uint8, 2: torch.uint8, 3: torch.int32, 4: torch.uint8, 8: torch.uint8}
"""Bits → the integers that codes are packed in."""

_PER_WORD = {1: 8, 2: 4, 3: 10, 4: 2, 8: 1}


class HqqWeight(PackedWeight):
    """One matrix.

    Args:
        codes: packed matrix of groups, [ceil(rows / codes a word), columns].
        scales, zeros: float; [1, groups] for axis 0, [groups, 1] for axis 1.
        shape: (out, in).
        bits: 1, 2, 3, 4 or 8.
        axis: of the matrix of groups, along which a group lies.
        window: rows of the weight this is a view of; None for all of ``shape``.

    Raises:
        ValueError: dtypes or shapes that do not go together.
    """

    def __init__(
        self,
        codes: Tensor,
        scales: Tensor,
        zeros: Tensor,
        shape: Sequence[int],
        *,
        bits: int,
        axis: int,
        window: tuple[int, int] | None = None,
    ) -> None:
        if bits not in WORDS or codes.dtype is not WORDS[bits] or codes.dim() != 2:
            raise ValueError(f"{codes.dtype} {list(codes.shape)} holds no codes of {bits} bits")
        if axis not in (0, 1) or scales.dim() != 2 or scales.shape[axis] != 1:
            raise ValueError(f"scales {list(scales.shape)} are none of groups along axis {axis}")
        if scales.shape != zeros.shape:
            raise ValueError(
                f"scales {list(scales.shape)} and zeros {list(zeros.shape)} do not belong together"
            )
        count, groups = prod(shape), scales.numel()
        if len(shape) != 2 or not groups or count % groups:
            raise ValueError(f"{groups} groups do not divide a weight of shape {list(shape)}")
        size = count // groups
        matrix = (size, groups) if axis == 0 else (groups, size)
        needed = (-(-matrix[0] // _PER_WORD[bits]), matrix[1])
        if tuple(codes.shape) != needed:
            raise ValueError(
                f"a weight of shape {list(shape)} in groups of {size} takes codes of shape "
                f"{list(needed)}, not {list(codes.shape)}"
            )
        self.codes, self.scales, self.zeros = codes, scales, zeros
        self.bits, self.axis, self.group_size = bits, axis, size
        self.whole_shape = tuple(shape)
        self.window = window or (0, shape[0])
        self.shape = (self.window[1] - self.window[0], shape[1])
        self.format = f"hqq.{bits}"

    def __repr__(self) -> str:
        return (
            f"HqqWeight(bits={self.bits}, group_size={self.group_size}, axis={self.axis}, "
            f"shape={list(self.shape)})"
        )

    @property
    def facts(self) -> Mapping[str, Hashable]:
        """See `tramontane.protocols.PackedWeight.facts`."""
        rows, columns = self.whole_shape
        if self.axis:
            groups = "scattered" if columns % self.group_size else "columns"
        else:
            whole = self.shape == self.whole_shape and rows % self.group_size == 0
            groups = "rows" if whole else "scattered"
        return {
            "bits": self.bits,
            "group_size": self.group_size,
            "groups": groups,
            "columns": columns,
        }

    @property
    def nbytes(self) -> int:
        whole = self.codes.nbytes + self.scales.nbytes + self.zeros.nbytes
        return whole * self.shape[0] // max(1, self.whole_shape[0])

    @property
    def device(self) -> torch.device:
        return self.codes.device

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        if self.shape != self.whole_shape:
            return self.gather(torch.arange(self.shape[0]), dtype)
        rows = self.scales.numel() if self.axis else self.group_size
        codes = unpack(self.codes, self.bits)[:rows]
        values = (codes.float() - self.zeros.float()) * self.scales.float()
        return values.to(dtype).view(self.shape)

    def affine(self) -> GroupAffineWeight:
        """The same as a scale and a bias a group.

        Raises:
            ValueError: groups are not of columns of one row.
        """
        if self.facts["groups"] != "columns":
            raise ValueError(f"groups of {self!r} are not of columns of one row")
        count = self.whole_shape[1] // self.group_size  # groups of a row
        rows = slice(self.window[0] * count, self.window[1] * count)
        codes = unpack(self.codes, self.bits)[rows].view(self.shape)
        scales, zeros = (t[rows].float().view(-1, count) for t in (self.scales, self.zeros))
        return GroupAffineWeight(
            pack_bits(codes, self.bits), scales, -zeros * scales, bits=self.bits
        )

    def rows(self, start: int, stop: int) -> Self:
        start, stop, _ = slice(start, stop).indices(self.shape[0])
        first = self.window[0]
        return self._with(window=(first + start, first + max(start, stop)))

    def gather(self, index: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        columns = self.shape[1]
        index = index.to(self.device) + self.window[0]
        flat = index.unsqueeze(-1) * columns + torch.arange(columns, device=self.device)
        width = self.codes.shape[1]
        row, column = flat // width, flat % width
        part, row_packed = row // self.codes.shape[0], row % self.codes.shape[0]
        shift = (_PER_WORD[self.bits] - 1 - part) * self.bits
        codes = self.codes[row_packed, column].to(torch.int32) >> shift & (1 << self.bits) - 1
        group = row if self.axis else column
        zeros, scales = self.zeros.flatten()[group], self.scales.flatten()[group]
        return ((codes.float() - zeros.float()) * scales.float()).to(dtype)

    def to(self, device: torch.device) -> Self:
        if self.device == torch.device(device):
            return self
        codes, scales, zeros = (t.to(device) for t in (self.codes, self.scales, self.zeros))
        return type(self)(
            codes,
            scales,
            zeros,
            self.whole_shape,
            bits=self.bits,
            axis=self.axis,
            window=self.window,
        )

    @classmethod
    def concat(cls, parts: Sequence[Self]) -> Self:
        """Of one weight only: groups go across rows, so that two cannot become one matrix."""
        if len(parts) != 1:
            raise ValueError("HQQ weights cannot be joined: their groups are not those of rows")
        return parts[0]

    def _with(self, window: tuple[int, int]) -> Self:
        return type(self)(
            self.codes,
            self.scales,
            self.zeros,
            self.whole_shape,
            bits=self.bits,
            axis=self.axis,
            window=window,
        )


def pack(codes: Tensor, bits: int) -> Tensor:
    """A matrix of codes [rows, columns] with rows packed together."""
    words = WORDS[bits]
    count = _PER_WORD[bits]
    padded = torch.nn.functional.pad(codes.to(torch.int32), (0, 0, 0, -codes.shape[0] % count))
    parts = padded.view(count, -1, codes.shape[1])
    shifts = torch.arange(count - 1, -1, -1, dtype=torch.int32, device=codes.device) * bits
    return (parts << shifts[:, None, None]).sum(0).to(words)


def unpack(packed: Tensor, bits: int) -> Tensor:
    """The inverse of `pack`, with the rows that filled the last words: [rows, columns] uint8."""
    count, mask = _PER_WORD[bits], (1 << bits) - 1
    parts = [packed >> (count - 1 - part) * bits & mask for part in range(count)]
    return torch.cat(parts).to(torch.uint8)
