"""Weights repacked for the kernels, once, when a model is bound."""

from __future__ import annotations

import ctypes
import sys
from copy import copy
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from tramontane.errors import CheckpointError
from tramontane.nn import GroupAffineWeight
from tramontane.protocols import PackedWeight
from tramontane_kernels_cpu.library import check, native, threads
from tramontane_kernels_cpu.widened import TYPES as WIDENED
from tramontane_kernels_cpu.widened import Widened, widened

PLAIN = {
    "gguf.f32": (0, torch.float32),
    "gguf.f16": (1, torch.float16),
    "gguf.bf16": (30, torch.bfloat16),
    "plain.f16": (1, torch.float16),
    "plain.bf16": (30, torch.bfloat16),
}
"""Formats that are arrays of floats, which the kernels read where they lie."""

TYPES = {
    **{name: number for name, (number, _) in PLAIN.items()},
    "gguf.q4_0": 2,
    "gguf.q4_1": 3,
    "gguf.q5_0": 6,
    "gguf.q5_1": 7,
    "gguf.q8_0": 8,
    "gguf.q2_k": 10,
    "gguf.q3_k": 11,
    "gguf.q4_k": 12,
    "gguf.q5_k": 13,
    "gguf.q6_k": 14,
    "gguf.q8_k": 15,
    "gguf.iq4_nl": 20,
    "gguf.iq4_xs": 23,
    "gguf.mxfp4": 39,
    "mxfp4.e2m1": 39,
}
"""Formats the kernels multiply with, and the library's number for each."""

_AFFINE = 64
AFFINE = {f"affine.{bits}": _AFFINE + bits for bits in (2, 3, 4, 5, 6, 8)}
"""Formats of `GroupAffineWeight`, whose groups must be multiples of 32 columns; the same."""

MANY_ROWS, MANY_ROWS_WIDENED = 96, 32
"""Rows of activations from which torch's product with plain floats, and with floats made of codes
for that purpose, is faster."""


def rounds_to_brain(dtype: torch.dtype) -> bool:
    """Whether the kernels in use round activations to BF16 for weights of this type, unless their
    fact ``exact`` says not to."""
    used = native()
    return dtype == torch.bfloat16 and used is not None and used.isa == "avx512bf16"


_ROUNDED, _TO_BRAIN = 63, -256

_FLOATS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}

_K_QUANTS = frozenset({10, 11, 12, 13, 14, 23})


class LinearRecord(ctypes.Structure):
    """``Linear`` of tmk.h."""

    _fields_ = (
        ("type", ctypes.c_int32),
        ("floats", ctypes.c_int32),
        ("rows", ctypes.c_int64),
        ("cols", ctypes.c_int64),
        ("data", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("group", ctypes.c_int64),
        ("beside", ctypes.c_void_p),
    )


class NativeWeight:
    """A matrix as the instruction set in use takes it.

    Attributes:
        shape: (out, in).
        data: panels, no larger than the original but for rounding up of rows; plain floats as they
            are.
        super_columns: columns that activations are rounded under one scale with: 32 or 256; 0
            where they are not rounded, and less where they are, to BF16.
        dense: [out, in] where the weight is plain floats, else None.
        many_rows: rows of activations from which torch's product with the weight as floats is
            faster; None where it never is.
        widened: what a weight consists of whose codes stay as they are stored, else None.
        apart: how far apart rows lie that share scales; 1 where rows have their own.
        order: [in] column of the activations that each column of the weight meets; None for those
            of its own number.
        address: of the C record, for calls.
    """

    def __init__(self, weight: PackedWeight, bias: Tensor | None = None) -> None:
        library = native()
        assert library is not None
        *experts, rows, cols = weight.shape
        if experts not in ([], [1]):
            raise ValueError(f"a stack of {experts} matrices is no linear weight")
        self.shape = (rows, cols)
        self.super_columns, self.apart = 0, 1
        self.many_rows: int | None = None
        self.dense: Tensor | None = None
        self.widened: Widened | None = None
        self.order: Tensor | None = None
        self._record = LinearRecord(rows=rows, cols=cols)
        self.address = ctypes.addressof(self._record)
        found: Any = weight
        if weight.facts.get("groups") == "columns" and hasattr(weight, "affine"):
            found = weight.affine()
        if isinstance(found, GroupAffineWeight):
            self.super_columns = 32
            self.order = found.order
            self._stored_as = (found.scales.dtype, found.biases.dtype)
            self.data = _affine_panels(library.calls, found, self._record)
        elif weight.format in PLAIN:
            self._record.type, dtype = PLAIN[weight.format]
            self.many_rows = MANY_ROWS
            if rounds_to_brain(dtype) and not weight.facts.get("exact"):
                self._record.type, self.super_columns = _ROUNDED, _TO_BRAIN
                # Torch does not round; a token's result would depend on how many come together.
                self.many_rows = sys.maxsize
            self.data = found.blocks.contiguous()
            self.dense = self.data.view(dtype).view(rows, cols)
        elif weight.format in WIDENED:
            parts = self.widened = widened(weight)
            self._record.type, self._record.beside = parts.kind, ctypes.addressof(parts.beside)
            self.many_rows, self.apart = MANY_ROWS_WIDENED, parts.apart
            self.data = parts.codes
        else:
            kind = self._record.type = TYPES[weight.format]
            self.super_columns = 256 if kind in _K_QUANTS else 32
            # Rows that a format keeps in another order than the weight's go straight to their
            # places.
            order: Tensor | None = getattr(found, "order", None)
            stored: Tensor = found.blocks if order is None else found.stored
            self._row_bytes = stored.shape[-1]
            self.data = _panels(library.calls, kind, stored.contiguous(), order, weight)
        self.bias = None if bias is None else bias.detach().float().contiguous()
        self._record.data = self.data.data_ptr()
        self._record.bias = None if self.bias is None else self.bias.data_ptr()

    def biased(self, bias: Tensor) -> NativeWeight:
        """The same panels with a bias."""
        twin = copy(self)
        twin.bias = bias.detach().float().contiguous()
        record = LinearRecord()
        ctypes.pointer(record)[0] = self._record
        record.bias = twin.bias.data_ptr()
        twin._record, twin.address = record, ctypes.addressof(record)
        return twin

    def restore(self, index: Tensor) -> Any:
        """Rows ``index`` [N] of panels in the parts that these were made of: codes, scales and
        biases of `GroupAffineWeight`, or blocks [N, bytes of a row]."""
        library = native()
        assert library is not None
        index = index.to("cpu", torch.int64).contiguous()
        count, (_, cols), record = index.numel(), self.shape, self._record
        if record.group:
            dtype = next(dtype for dtype, number in _FLOATS.items() if number == record.floats)
            codes = torch.empty(count, cols // 8 * (record.type - _AFFINE), dtype=torch.uint8)
            floats = [torch.empty(count, cols // record.group, dtype=dtype) for _ in range(2)]
            places = [part.data_ptr() for part in (codes, *floats)]
            call = library.calls.tmk_unpack_affine
            check(call(self.address, index.data_ptr(), count, *places, threads()))
            return codes, *(part.to(own) for part, own in zip(floats, self._stored_as, strict=True))
        blocks = torch.empty(count, self._row_bytes, dtype=torch.uint8)
        call = library.calls.tmk_unpack
        check(call(self.address, index.data_ptr(), count, blocks.data_ptr(), threads()))
        return blocks

    def floats(self, start: int, stop: int) -> Tensor:
        """Rows ``start:stop`` as float32, where `many_rows` is not None."""
        if self.dense is not None:
            return self.dense[start:stop].float()
        stop = min(stop, self.shape[0])
        out = torch.empty(stop - start, self.shape[1])
        library = native()
        assert library is not None
        call = library.calls.tmk_floats
        check(call(self.address, start, stop - start, out.data_ptr(), threads()))
        return out


_packed: WeakKeyDictionary[PackedWeight, NativeWeight] = WeakKeyDictionary()


def repack(weight: PackedWeight) -> NativeWeight:
    """The panels of ``weight``; made once however many modules share it.

    Raises:
        CheckpointError: a block's scale is NaN or infinite.
    """
    if weight not in _packed:
        made = _packed[weight] = NativeWeight(weight)
        if made.many_rows is None:
            weight.release(made.restore)
    return _packed[weight]


def _panels(
    calls: Any, kind: int, blocks: Tensor, order: Tensor | None, weight: PackedWeight
) -> Tensor:
    *_, rows, cols = weight.shape
    size = calls.tmk_packed_bytes(kind, rows, cols)
    check(size)
    data = _aligned(size)
    if order is not None:
        order = order.to(torch.int64).contiguous()
    places = None if order is None else order.data_ptr()
    status = calls.tmk_pack(kind, rows, cols, blocks.data_ptr(), places, data.data_ptr(), threads())
    _check_scales(status, weight)
    return data


def _affine_panels(calls: Any, weight: GroupAffineWeight, record: LinearRecord) -> Tensor:
    scales, minima = weight.scales, weight.biases
    if scales.dtype != minima.dtype or scales.dtype not in _FLOATS:
        scales, minima = scales.float(), minima.float()
    record.type, record.group = AFFINE[weight.format], weight.group_size
    record.floats = _FLOATS[scales.dtype]
    size = calls.tmk_affine_bytes(ctypes.byref(record))
    check(size)
    data = _aligned(size)
    parts = [part.contiguous() for part in (weight.codes, scales, minima)]
    places = [part.data_ptr() for part in (*parts, data)]
    _check_scales(calls.tmk_pack_affine(ctypes.byref(record), *places, threads()), weight)
    return data


def _check_scales(status: int, weight: PackedWeight) -> None:
    if status == -3:
        raise CheckpointError(
            f"a weight of type {weight.format} and shape {list(weight.shape)} has a block "
            f"whose scale is not a finite number; the file is damaged"
        )
    check(status)


def _aligned(size: int) -> Tensor:
    """Bytes that begin at a cache line."""
    raw = torch.empty(size + 64, dtype=torch.uint8)
    start = -raw.data_ptr() % 64
    return raw[start : start + size]
