"""Weights that the kernels read as they are stored, codes and the scales beside them.

Formats of other distributions are known here by name, and read by the attributes that their classes
document.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

import torch
from attrs import frozen
from torch import Tensor

from tramontane.errors import CheckpointError
from tramontane.protocols import PackedWeight

_E4M3, _BOOK, _CROSSED = 80, 81, 96

TYPES = {
    "fp8.tensor": _E4M3,
    "fp8.channel": _E4M3,
    "fp8.block": _E4M3,
    "bnb.nf4": _BOOK,
    "bnb.fp4": _BOOK,
    **{f"hqq.{bits}": _CROSSED + bits for bits in (1, 2, 4, 8)},
}
"""Formats, and the library's number for each."""

_NAN = 0x7F  # of E4M3, its sign aside
_CHUNK = 1 << 20


class BesideRecord(ctypes.Structure):
    """``Beside`` of tmk.h."""

    _fields_ = (
        ("scales", ctypes.c_void_p),
        ("zeros", ctypes.c_void_p),
        ("book", ctypes.c_void_p),
        ("height", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("first_row", ctypes.c_int64),
        ("across", ctypes.c_int64),
    )


@frozen
class Widened:
    """What a call points to.

    Attributes:
        kind: the library's number of the format.
        codes: uint8, contiguous; the weight's own memory where they were so.
        beside: the record of what lies beside them.
        kept: what that points to.
        apart: how far apart rows lie that share scales; 1 where rows have their own.
    """

    kind: int
    codes: Tensor
    beside: BesideRecord
    kept: tuple[Tensor, ...]
    apart: int = 1


def multiplies(facts: Mapping[str, Any]) -> bool:
    """Whether weights of these facts are covered."""
    kind = TYPES.get(facts.get("format", ""))
    if kind is None:
        return False
    if kind == _BOOK:
        return bool(facts["groups"] == "columns")
    if kind > _CROSSED:
        size, columns = facts["group_size"], facts["columns"]
        return bool(facts["groups"] == "rows" and size % 32 == 0 and columns % 32 == 0)
    return True


def widened(weight: PackedWeight) -> Widened:
    """Of a weight [out, in].

    Raises:
        CheckpointError: a scale, or an 8-bit float, is no finite number.
    """
    kind = TYPES[weight.format]
    *_, rows, columns = weight.shape
    found: Any = weight
    codes: Tensor = found.codes.contiguous().view(torch.uint8)
    scales = _finite(found.scales.float(), weight).contiguous()
    if kind == _E4M3:
        _refuse_nan(codes, weight)
        height, width = found.tile
        beside = BesideRecord(
            scales=scales.data_ptr(),
            height=height,
            width=width,
            first_row=found.first_row,
            across=scales.shape[-1],
        )
        return Widened(kind, codes, beside, (scales,))
    if kind == _BOOK:
        table = found.table.contiguous()
        beside = BesideRecord(
            scales=scales.data_ptr(),
            book=table.data_ptr(),
            height=1,
            width=found.block,
            across=columns // found.block,
        )
        return Widened(kind, codes, beside, (scales, table))
    zeros = _finite(found.zeros.float(), weight).contiguous()
    size = found.group_size
    beside = BesideRecord(
        scales=scales.data_ptr(), zeros=zeros.data_ptr(), height=size, width=1, across=columns
    )
    return Widened(kind, codes, beside, (scales, zeros), rows // size)


def _finite(numbers: Tensor, weight: PackedWeight) -> Tensor:
    if not bool(numbers.isfinite().all()):
        raise CheckpointError(
            f"a weight of type {weight.format} and shape {list(weight.shape)} has a scale that "
            f"is not a finite number; the file is damaged"
        )
    return numbers


def _refuse_nan(codes: Tensor, weight: PackedWeight) -> None:
    for part in torch.split(codes.view(-1), _CHUNK):
        if bool(((part & _NAN) == _NAN).any()):
            raise CheckpointError(
                f"a weight of type {weight.format} and shape {list(weight.shape)} holds NaN; the "
                f"file is damaged"
            )
