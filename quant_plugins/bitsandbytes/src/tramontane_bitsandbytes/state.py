"""What a checkpoint says of a weight of 4 bits: JSON, a byte a number, in a tensor of its own."""

from __future__ import annotations

import json
from math import isfinite
from typing import Any, Self

import torch
from attrs import frozen
from torch import Tensor

KINDS = ("nf4", "fp4")

_LONGEST = 1 << 12
_BLOCKS = tuple(1 << power for power in range(5, 13))


@frozen(kw_only=True)
class QuantState:
    """
    Attributes:
        kind: one of `KINDS`.
        block: numbers that share a scale.
        shape: (out, in).
        nested_block: scales that share a scale; None where scales are plain.
        offset: what is added to nested scales.
    """

    kind: str
    block: int
    shape: tuple[int, int]
    nested_block: int | None
    offset: float

    @classmethod
    def read(cls, data: Tensor, kind: str) -> Self:
        """
        Args:
            data: the bytes.
            kind: what the name of the tensor says.

        Raises:
            ValueError: anything else than that.
        """
        if data.dtype is not torch.uint8 or data.dim() != 1 or data.numel() > _LONGEST:
            raise ValueError(f"{data.dtype} {list(data.shape)} is no JSON of {_LONGEST} bytes")
        try:
            state = json.loads(bytes(data.tolist()))
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as cause:
            raise ValueError(f"it is no JSON: {cause}") from cause
        if not isinstance(state, dict):
            raise ValueError(f"it is {state!r}, not settings by name")
        if kind not in KINDS or state.get("quant_type") != kind:
            raise ValueError(f"quant_type is {state.get('quant_type')!r}, the name says {kind!r}")
        shape = state.get("shape")
        if not isinstance(shape, list) or [type(side) for side in shape] != [int, int]:
            raise ValueError(f"shape is {shape!r}; rows and columns are expected")
        rows, columns = shape
        if rows < 1 or columns < 1:
            raise ValueError(f"shape is {shape!r}; rows and columns are expected")
        nested = state.get("nested_blocksize")
        offset = state.get("nested_offset", 0.0)
        if not isinstance(offset, float) or not isfinite(offset):
            raise ValueError(f"nested_offset is {offset!r}; a number is expected")
        return cls(
            kind=kind,
            block=_size("blocksize", state.get("blocksize")),
            shape=(rows, columns),
            nested_block=None if nested is None else _size("nested_blocksize", nested),
            offset=offset,
        )


def _size(key: str, value: Any) -> int:
    if type(value) is not int or value not in _BLOCKS:
        raise ValueError(f"{key} is {value!r}; it must be one of {', '.join(map(str, _BLOCKS))}")
    return value
