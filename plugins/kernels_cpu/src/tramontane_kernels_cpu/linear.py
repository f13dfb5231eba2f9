"""Quantized linear: weights in their blocks, activations in int8, float32 in and out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tramontane.protocols import PackedWeight
from tramontane_kernels_cpu.library import check, native, threads, variant, why_not
from tramontane_kernels_cpu.weights import AFFINE, TYPES, NativeWeight, repack
from tramontane_kernels_cpu.widened import multiplies

_SLICE = 1 << 21  # numbers of a weight in float32 at once


def packed_linear(x: Tensor, weight: NativeWeight, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``, activations rounded to int8 with a scale every 32 columns (256 for
    K-quants), or as they are where the weights are floats or are made such one by one.

    Args:
        x: [..., in].
        weight: what `prepare` made.
        bias: [out] or None.

    Returns:
        [..., out] in the type of ``x``.
    """
    rows, cols = weight.shape
    h = x.reshape(-1, cols).to(torch.float32)
    h = h.contiguous() if weight.order is None else h.index_select(1, weight.order)
    out = torch.empty(h.shape[0], rows)
    if weight.many_rows is not None and h.shape[0] >= weight.many_rows:
        _through_torch(h, weight, out)
        return (out if bias is None else out + bias).to(x.dtype).view(*x.shape[:-1], rows)
    library = native()
    assert library is not None
    check(
        library.calls.tmk_linear(
            weight.address, h.data_ptr(), cols, h.shape[0], out.data_ptr(), rows, threads()
        )
    )
    if bias is not None:
        out += bias
    return out.to(x.dtype).view(*x.shape[:-1], rows)


def _through_torch(x: Tensor, weight: NativeWeight, out: Tensor) -> None:
    """``out = x @ weight.T``, the weight in float32 a slice of rows at a time."""
    step = max(1, _SLICE // weight.shape[1])
    for start in range(0, weight.shape[0], step):
        part = weight.floats(start, start + step)
        torch.mm(x, part.T, out=out[:, start : start + step])


def supports(**facts: Any) -> bool:
    if facts.get("format") in TYPES or multiplies(facts):
        return True
    in_blocks = bool(facts.get("groups") == "columns" and facts["group_size"] % 32 == 0)
    return in_blocks and f"affine.{facts['bits']}" in AFFINE


def prepare(weight: PackedWeight) -> NativeWeight:
    return repack(weight)


packed_linear.why_not = why_not  # type: ignore[attr-defined]
packed_linear.variant = variant  # type: ignore[attr-defined]
packed_linear.supports = supports  # type: ignore[attr-defined]
packed_linear.prepare = prepare  # type: ignore[attr-defined]
