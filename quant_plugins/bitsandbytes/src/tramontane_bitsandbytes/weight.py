"""`CodebookWeight`: codes of four bits into a table of numbers, scaled by the block.

Format: Dettmers et al., arXiv:2305.14314 (QLoRA), sections 2 and 3, as bitsandbytes lays it out: a
weight is one row of numbers, cut into blocks regardless of its own rows; two numbers share a byte,
the first in its upper half.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from math import prod
from typing import Self

import torch
from attrs import evolve, frozen
from torch import Tensor
from torch.nn import functional as F

from tramontane.protocols import PackedWeight

# Numbers decoded at a time, so that temporaries stay small.
_CHUNK = 1 << 20


@frozen(kw_only=True, eq=False)
class NestedScales:
    """Scales of blocks that are packed themselves: ``table[code] * scale + offset``.

    Attributes:
        codes: [blocks] uint8.
        table: [256] float32.
        scales: float32, one for each ``size`` codes of the whole weight.
        offset: [] float32.
        size: codes that share a scale.
        first: place of the first code in the whole weight.
    """

    codes: Tensor
    table: Tensor
    scales: Tensor
    offset: Tensor
    size: int
    first: int = 0

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.table.nbytes + self.scales.nbytes + self.offset.nbytes

    def __len__(self) -> int:
        return self.codes.shape[0]

    def __getitem__(self, part: slice) -> NestedScales:
        start, stop, _ = part.indices(len(self))
        return evolve(self, codes=self.codes[start:stop], first=self.first + start)

    def float(self) -> Tensor:
        """[blocks] float32."""
        places = torch.arange(self.first, self.first + len(self), device=self.codes.device)
        return self.table[self.codes.int()] * self.scales[places // self.size] + self.offset

    def to(self, device: torch.device) -> NestedScales:
        moved = (t.to(device) for t in (self.codes, self.table, self.scales, self.offset))
        codes, table, scales, offset = moved
        return evolve(self, codes=codes, table=table, scales=scales, offset=offset)


class CodebookWeight(PackedWeight):
    """Codes, scales and table of one matrix; codes are often views of a mapped file.

    Args:
        codes: [bytes] uint8.
        scales: one for each block, float32 or packed.
        table: [16] float32, what the codes mean.
        shape: (out, in).
        kind: ``"nf4"`` or ``"fp4"``.
        block: numbers that share a scale, an even count.
        skipped: numbers of the first block that belong to rows in front of these.

    Raises:
        ValueError: dtypes or shapes that do not go together.
    """

    def __init__(
        self,
        codes: Tensor,
        scales: Tensor | NestedScales,
        table: Tensor,
        shape: Sequence[int],
        *,
        kind: str,
        block: int,
        skipped: int = 0,
    ) -> None:
        count = skipped + prod(shape)
        if codes.dtype is not torch.uint8 or list(codes.shape) != [-(-count // 2)]:
            raise ValueError(
                f"{count} numbers take {-(-count // 2)} bytes of codes, not {codes.dtype} "
                f"{list(codes.shape)}"
            )
        if len(shape) != 2 or block < 2 or block % 2 or len(scales) != -(-count // block):
            raise ValueError(
                f"a weight of shape {list(shape)} in blocks of {block} takes "
                f"{-(-count // max(1, block))} scales, not {len(scales)}"
            )
        if table.dtype is not torch.float32 or list(table.shape) != [16]:
            raise ValueError(f"a table of {table.dtype} {list(table.shape)} has no 16 numbers")
        self.codes, self.scales, self.table = codes, scales, table
        self.shape = tuple(shape)
        self.kind, self.block, self.skipped = kind, block, skipped
        self.format = f"bnb.{kind}"

    def __repr__(self) -> str:
        return f"CodebookWeight({self.kind}, block={self.block}, shape={list(self.shape)})"

    @property
    def facts(self) -> Mapping[str, Hashable]:
        """See `tramontane.protocols.PackedWeight.facts`."""
        in_rows = not self.skipped and self.shape[1] % self.block == 0
        return {
            "bits": 4,
            "group_size": self.block,
            "groups": "columns" if in_rows else "scattered",
            "columns": self.shape[1],
        }

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes + self.table.nbytes

    @property
    def device(self) -> torch.device:
        return self.codes.device

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        count = prod(self.shape)
        out = torch.empty(count, dtype=dtype, device=self.device)
        step = max(1, _CHUNK // self.block)
        for low in range(0, len(self.scales), step):
            values = self._blocks(low, min(low + step, len(self.scales)))
            at = low * self.block - self.skipped  # where they begin in the weight
            values = values[max(0, -at) : count - at]
            out[max(0, at) : max(0, at) + values.shape[0]] = values
        return out.view(self.shape)

    def _blocks(self, low: int, high: int) -> Tensor:
        """All numbers of some blocks, and zeros where the last one ends early."""
        codes = self.codes[low * self.block // 2 : high * self.block // 2]
        codes = F.pad(codes, (0, (high - low) * self.block // 2 - codes.shape[0]))
        byte = torch.arange(256, device=self.device)
        pairs = torch.stack((self.table[byte >> 4], self.table[byte & 0xF]), -1)
        values = F.embedding(codes.int(), pairs).view(high - low, self.block)
        return (values * self.scales[low:high].float()[:, None]).flatten()

    def rows(self, start: int, stop: int) -> Self:
        start, stop, _ = slice(start, stop).indices(self.shape[0])
        stop, columns = max(start, stop), self.shape[1]
        low, high = self.skipped + start * columns, self.skipped + stop * columns
        first = low // self.block
        codes = self.codes[first * self.block // 2 : -(-high // 2)]
        scales = self.scales[first : -(-high // self.block)]
        return self._with(codes, scales, (stop - start, columns), low - first * self.block)

    def gather(self, index: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        index = index.to(self.device)
        columns = self.shape[1]
        if columns % self.block or self.skipped:
            rows = [self.rows(i, i + 1).dequantize(dtype) for i in index.tolist()]
            return torch.cat(rows) if rows else torch.empty(0, columns, dtype=dtype)
        codes = self.codes.view(self.shape[0], -1).index_select(0, index).flatten()
        scales = self.scales.float().view(self.shape[0], -1).index_select(0, index).flatten()
        return self._with(codes, scales, (index.shape[0], columns), 0).dequantize(dtype)

    def to(self, device: torch.device) -> Self:
        if self.device == torch.device(device):
            return self
        moved = self._with(self.codes.to(device), self.scales.to(device), self.shape, self.skipped)
        moved.table = self.table.to(device)
        return moved

    @classmethod
    def concat(cls, parts: Sequence[Self]) -> Self:
        if not parts:
            raise ValueError("there is nothing to concatenate")
        first = parts[0]
        for part in parts:
            alike = (part.kind, part.block) == (first.kind, first.block)
            if not alike or part.skipped or not torch.equal(part.table, first.table):
                raise ValueError(f"{part!r} cannot follow {first!r} in one weight")
        if any(p.shape[1:] != first.shape[1:] for p in parts) or any(
            prod(p.shape) % p.block for p in parts[:-1]
        ):
            raise ValueError(f"{parts[1:]} cannot follow {first!r} in one weight")
        return first._with(
            torch.cat([p.codes for p in parts]),
            torch.cat([p.scales.float() for p in parts]),
            (sum(p.shape[0] for p in parts), first.shape[1]),
            0,
        )

    def _with(
        self,
        codes: Tensor,
        scales: Tensor | NestedScales,
        shape: Sequence[int],
        skipped: int,
    ) -> Self:
        return type(self)(
            codes,
            scales,
            self.table,
            shape,
            kind=self.kind,
            block=self.block,
            skipped=skipped,
        )
