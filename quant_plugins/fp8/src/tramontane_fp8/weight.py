"""`Fp8Weight`: 8-bit floats that share a scale by tensor, channel or block.

Format: Micikevicius et al., arXiv:2209.05433 (E4M3, which has no infinities); in blocks as in
DeepSeek-V3, arXiv:2412.19437, section 3.3.2, and laid out as in Hugging Face checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from tramontane.protocols import PackedWeight

# Numbers decoded at a time: temporaries stay in a core's cache, or fill a GPU.
_CHUNK_CPU = 1 << 18
_CHUNK_DEVICE = 1 << 24


class Fp8Weight(PackedWeight):
    """Codes and scales of one weight, or of a stack of them; often views of a mapped file.

    A number is its code times the scale of the tile of the matrix it lies in. Tiles that reach
    over the edge are cut there.

    Attributes:
        format: ``"fp8.tensor"``, ``"fp8.channel"`` or ``"fp8.block"``, by the size of a tile.
        shape: logical shape, torch order.
        codes: [*shape] float8_e4m3fn.
        scales: [*shape[:-2], tiles down, tiles across] float32.
        tile: its rows and columns.
        first_row: row of the topmost tiles where the weight begins, when it is a part of another.

    Raises:
        ValueError: dtypes or shapes that do not go together.
    """

    def __init__(
        self, codes: Tensor, scales: Tensor, tile: tuple[int, int], *, first_row: int = 0
    ) -> None:
        if codes.dtype != torch.float8_e4m3fn or scales.dtype != torch.float32:
            raise ValueError(
                f"codes are float8_e4m3fn and scales float32, not {_named(codes.dtype)} and "
                f"{_named(scales.dtype)}"
            )
        if codes.dim() not in (2, 3) or min(tile) < 1 or not 0 <= first_row < tile[0]:
            raise ValueError(
                f"a weight of shape {list(codes.shape)} cannot begin in row {first_row} of tiles "
                f"of {list(tile)}; it is a matrix, or a stack of them"
            )
        down, across = -(-(first_row + codes.shape[-2]) // tile[0]), -(-codes.shape[-1] // tile[1])
        if scales.shape != (*codes.shape[:-2], down, across):
            raise ValueError(
                f"scales of shape {list(scales.shape)} do not fit codes of shape "
                f"{list(codes.shape)}: tiles of {list(tile)} ask for "
                f"{[*codes.shape[:-2], down, across]}"
            )
        self.codes, self.scales, self.tile, self.first_row = codes, scales, tile, first_row
        self.shape = tuple(codes.shape)
        if scales.shape[-2:] == (1, 1):
            self.format = "fp8.tensor"
        else:
            self.format = "fp8.channel" if tile[0] == scales.shape[-1] == 1 else "fp8.block"

    def __repr__(self) -> str:
        return f"Fp8Weight({self.format}, shape={list(self.shape)}, device={self.device})"

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes

    @property
    def device(self) -> torch.device:
        return self.codes.device

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        out = torch.empty(self.shape, dtype=dtype, device=self.device)
        if len(self.shape) == 3:
            for index in range(self.shape[0]):
                _decode(
                    out[index], self.codes[index], self.scales[index], self.tile, self.first_row
                )
        else:
            _decode(out, self.codes, self.scales, self.tile, self.first_row)
        return out

    def rows(self, start: int, stop: int) -> Self:
        return self.part(slice(start, stop))

    def part(self, rows: slice, axis: int = 0) -> Self:
        if not 0 <= axis < len(self.shape) - 1 or rows.step not in (None, 1):
            raise ValueError(
                f"{self.format} can be cut into neighbouring rows of a matrix or stack"
            )
        start, stop, _ = rows.indices(self.shape[axis])
        index = (slice(None),) * axis
        if axis < len(self.shape) - 2:
            chosen = (*index, slice(start, stop))
            return self._like(self.codes[chosen], self.scales[chosen], self.first_row)
        height = self.tile[0]
        low, high = self.first_row + start, self.first_row + stop
        tiles = slice(low // height, -(-high // height))
        scales = self.scales[(*index, tiles)]
        return self._like(self.codes[(*index, slice(start, stop))], scales, low % height)

    def gather(self, index: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        index = index.to(self.device)
        # Not every operator takes 8-bit floats; all take bytes.
        codes = self.codes.view(torch.uint8).index_select(0, index).view(self.codes.dtype)
        if len(self.shape) == 3:
            return self._like(codes, self.scales[index], self.first_row).dequantize(dtype)
        scales = self.scales[(self.first_row + index) // self.tile[0]]
        return type(self)(codes, scales, (1, self.tile[1])).dequantize(dtype)

    def to(self, device: torch.device) -> Self:
        if self.device == torch.device(device):
            return self
        return self._like(self.codes.to(device), self.scales.to(device), self.first_row)

    def by_channel(self) -> Self:
        """The same with a scale for each row, where one serves a whole row already.

        Raises:
            ValueError: a row has several scales.
        """
        if self.scales.shape[-1] != 1:
            raise ValueError(f"rows of {self!r} have several scales")
        scales = self.scales.repeat_interleave(self.tile[0], -2)
        scales = scales.narrow(-2, self.first_row, self.shape[-2])
        return type(self)(self.codes, scales, (1, self.shape[-1]))

    @classmethod
    def concat(cls, parts: Sequence[Self]) -> Self:
        if not parts:
            raise ValueError("there is nothing to concatenate")
        first = parts[0]
        alike = all(p.shape[1:] == first.shape[1:] for p in parts)
        if alike and len(first.shape) == 2 and first.scales.shape[-1] == 1:
            # Tensors of different scales are, together, one with a scale a channel.
            parts = [part.by_channel() for part in parts]
            first = parts[0]
        whole_tiles = len(first.shape) == 3 or all(
            p.first_row == 0 and p.shape[0] % p.tile[0] == 0 for p in parts[:-1]
        )
        same = all((p.tile, p.first_row) == (first.tile, first.first_row) for p in parts)
        if not (alike and same and whole_tiles):
            raise ValueError(f"{parts[1:]} cannot follow {first!r} in one weight")
        codes = torch.cat([p.codes.view(torch.uint8) for p in parts]).view(first.codes.dtype)
        return first._like(codes, torch.cat([p.scales for p in parts]), first.first_row)

    def _like(self, codes: Tensor, scales: Tensor, first_row: int) -> Self:
        return type(self)(codes, scales, self.tile, first_row=first_row)


def _decode(
    out: Tensor, codes: Tensor, scales: Tensor, tile: tuple[int, int], first_row: int
) -> None:
    """Codes [rows, columns] times their scales into ``out``, some rows at a time, in float32."""
    num_rows, num_columns = codes.shape
    step = max(1, (_CHUNK_CPU if codes.device.type == "cpu" else _CHUNK_DEVICE) // num_columns)
    for start in range(0, num_rows, step):
        stop = min(start + step, num_rows)
        row = torch.arange(first_row + start, first_row + stop, device=codes.device)
        of_rows = scales[row // tile[0]]  # [rows, tiles across]
        if of_rows.shape[1] > 1:
            of_rows = of_rows.repeat_interleave(tile[1], 1)[:, :num_columns]
        out[start:stop] = codes[start:stop].float() * of_rows


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
