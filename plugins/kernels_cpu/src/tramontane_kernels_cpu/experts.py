"""A mixture of experts in one native call: all chosen experts' projections, gates and sums.

The function takes a module whose weights are in place and gives what computes its ``forward``, or
None where something in it is not covered: a gate that is neither an activation the kernels know
nor bounded, weights they have no form for, or gate and up that round their input differently.
"""

from __future__ import annotations

import ctypes
import sys
from functools import partial
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn

from tramontane.nn import (
    ActivatedGate,
    BoundedGate,
    ExpertLinear,
    GatedExperts,
    MoE,
    NarrowExpertLinear,
    NarrowLinear,
    PackedExpertLinear,
    PackedLinear,
    SoftmaxTopK,
)
from tramontane_kernels_cpu.library import check, native, threads, why_not
from tramontane_kernels_cpu.parts import ACTS, Whole, is_plain, listened
from tramontane_kernels_cpu.weights import MANY_ROWS, LinearRecord, NativeWeight

_PLAIN_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 30}


class ExpertsRecord(ctypes.Structure):
    """``Experts`` of experts.h."""

    _fields_ = (
        ("count", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("gate", "up", "down")),
        ("act", ctypes.c_int64),
        ("limit", ctypes.c_double),
        ("alpha", ctypes.c_double),
    )


class _RoutingRecord(ctypes.Structure):
    """``Routing`` of experts.h."""

    _fields_ = (
        ("top_k", ctypes.c_int64),
        ("chosen", ctypes.c_void_p),
        ("weights", ctypes.c_void_p),
    )


class RouterRecord(ctypes.Structure):
    """``Router`` of experts.h."""

    _fields_ = (
        ("scores", ctypes.c_void_p),
        ("top_k", ctypes.c_int64),
        ("renormalize", ctypes.c_int64),
    )


@frozen(eq=False)
class BoundExperts:
    """Experts as the library takes them.

    Attributes:
        record: points into ``kept``.
        kept: the records of all matrices, and what these point to.
        modules: those whose forward is not called, which others may listen to.
        dense: whether a stack is plain floats, with which torch multiplies many rows faster.
    """

    record: ExpertsRecord
    kept: list[Any]
    modules: tuple[nn.Module, ...]
    dense: bool

    @property
    def most_pairs(self) -> int:
        """Pairs of token and expert from which the experts are faster one by one."""
        return MANY_ROWS * int(self.record.count) if self.dense else sys.maxsize


def gated_experts(module: nn.Module, dtype: torch.dtype) -> Whole | None:
    """`tramontane.nn.GatedExperts`."""
    bound = bind_experts(module) if dtype == torch.float32 else None
    return None if bound is None else partial(_forward, bound)


def bind_experts(module: nn.Module) -> BoundExperts | None:
    """What `GatedExperts` are to the library; None where it does not cover them."""
    if not isinstance(module, GatedExperts) or not is_plain(module, GatedExperts):
        return None
    record = ExpertsRecord(count=module.num_experts)
    match module.combine:
        case ActivatedGate(act) if act in ACTS:
            record.act = ACTS[act]
        case BoundedGate(limit, alpha) if limit > 0:
            record.limit, record.alpha = limit, alpha
        case _:
            return None
    kept: list[Any] = []
    rounding: dict[str, int] = {}
    dense = False
    stacks = {name: getattr(module, f"{name}_proj") for name in ("gate", "up", "down")}
    for name, stack in stacks.items():
        found = _records(stack, kept)
        if found is None:
            return None
        records, rounding[name] = found
        setattr(record, name, ctypes.addressof(records))
        dense = dense or not rounding[name]
    if rounding["gate"] != rounding["up"]:
        return None
    return BoundExperts(record, kept, tuple(stacks.values()), dense)


def bind_router(module: MoE, kept: list[Any]) -> RouterRecord | None:
    """A mixture's router; None where it is no softmax over a linear of plain floats."""
    route, gate = module.route, module.gate
    if type(route) is not SoftmaxTopK or route.top_k > module.num_experts:
        return None
    if is_plain(gate, PackedLinear) or is_plain(gate, NarrowLinear):
        operand: Any = gate.operand
        if not isinstance(operand, NativeWeight) or operand.dense is None or operand.super_columns:
            return None
        kept.append(operand)
        record = LinearRecord.from_buffer_copy(LinearRecord.from_address(operand.address))
    elif type(gate) is nn.Linear and gate.weight.dtype == torch.float32:
        weight = gate.weight.detach().contiguous()
        kept.append(weight)
        record = LinearRecord(0, 0, *weight.shape, weight.data_ptr())
    else:
        return None
    if gate.bias is not None:
        bias: Any = gate.bias
        bias = bias.detach().float().contiguous()
        kept.append(bias)
        record.bias = bias.data_ptr()
    kept.append(record)
    return RouterRecord(ctypes.addressof(record), route.top_k, route.renormalize)


def _records(stack: nn.Module, kept: list[Any]) -> tuple[Any, int] | None:
    """A record for each expert's matrix, and the columns that activations are rounded under one
    scale with; None for a stack of another kind."""
    bias: Any = stack.bias
    if bias is not None:
        bias = bias.detach().float().contiguous()
        kept.append(bias)
    if is_plain(stack, ExpertLinear):
        weight: Any = stack.weight.detach()  # type: ignore[operator]
        kind = _PLAIN_TYPES.get(weight.dtype)
        if kind is None or not weight.is_contiguous():
            return None
        kept.append(weight)
        matrices = [LinearRecord(kind, 0, *w.shape, w.data_ptr(), None) for w in weight]
        super_columns = 0
    elif is_plain(stack, PackedExpertLinear) or is_plain(stack, NarrowExpertLinear):
        operands: list[Any] = stack.operands  # type: ignore[assignment]
        if not all(isinstance(o, NativeWeight) and o.order is None for o in operands):
            return None
        if any(operand.widened is not None for operand in operands):
            return None
        if len({(operand.shape, operand.super_columns) for operand in operands}) != 1:
            return None
        kept.append(operands)
        matrices = [LinearRecord.from_address(operand.address) for operand in operands]
        super_columns = operands[0].super_columns
    else:
        return None
    records = (LinearRecord * len(matrices))(*matrices)
    for record, row in zip(records, () if bias is None else bias, strict=False):
        record.bias = row.data_ptr()
    kept.append(records)
    return records, super_columns


def _forward(bound: BoundExperts, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor | None:
    if x.dtype != torch.float32 or listened(bound.modules):
        return None
    if chosen.numel() >= bound.most_pairs:
        return None
    library = native()
    assert library is not None
    x, weights = x.contiguous(), weights.float().contiguous()
    chosen = chosen.to(torch.int64).contiguous()
    out = torch.empty_like(x)
    routing = _RoutingRecord(chosen.shape[-1], chosen.data_ptr(), weights.data_ptr())
    check(
        library.calls.tmk_experts(
            ctypes.byref(bound.record),
            ctypes.byref(routing),
            x.data_ptr(),
            x.shape[0],
            out.data_ptr(),
            threads(),
        )
    )
    return out


gated_experts.why_not = why_not  # type: ignore[attr-defined]
