"""Root mean square normalization in one native call."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from tramontane.nn import RMSNorm
from tramontane_kernels_cpu.library import check, native, threads, why_not
from tramontane_kernels_cpu.parts import Whole, is_plain


def rms_norm(module: nn.Module, dtype: torch.dtype) -> Whole | None:
    """`tramontane.nn.RMSNorm` of float32: what computes its ``forward``; None for another."""
    if not isinstance(module, RMSNorm) or not is_plain(module, RMSNorm) or dtype != torch.float32:
        return None
    weight = module.weight.detach().float().contiguous()
    return partial(_forward, weight, module.eps)


def _forward(weight: Tensor, eps: float, x: Tensor) -> Tensor | None:
    if x.dtype != torch.float32:
        return None
    library = native()
    assert library is not None
    x = x.contiguous()
    out = torch.empty_like(x)
    size = weight.shape[0]
    check(
        library.calls.tmk_norm(
            x.data_ptr(),
            weight.data_ptr(),
            eps,
            size,
            x.numel() // size,
            out.data_ptr(),
            threads(),
        )
    )
    return out


rms_norm.why_not = why_not  # type: ignore[attr-defined]
