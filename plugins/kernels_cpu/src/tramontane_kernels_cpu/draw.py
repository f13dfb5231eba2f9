"""Penalties, and drawing tokens, in a native call each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tramontane.kernels.draw import OFF, Drawing
from tramontane_kernels_cpu.library import check, native, threads, variant, why_not

_HOTTEST = float(np.finfo(np.float32).max)


def draw(logits: Tensor, params: Sequence[Drawing], uniforms: Sequence[float]) -> list[int]:
    """`tramontane.kernels.draw.draw`."""
    library = native()
    assert library is not None
    vocab_size = logits.shape[-1]
    # [R, 5], `Drawing` of draw.h
    rows = np.array([_row(p, vocab_size, u) for p, u in zip(params, uniforms, strict=True)])
    logits = logits.float()
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    tokens = np.empty(len(rows), np.int64)
    check(
        library.calls.tmk_draw(
            logits.data_ptr(),
            logits.stride(0),
            vocab_size,
            rows.ctypes.data,
            len(rows),
            tokens.ctypes.data,
            threads(),
        )
    )
    drawn: list[int] = tokens.tolist()
    return drawn


def _row(params: Drawing, vocab_size: int, uniform: float) -> tuple[float, ...]:
    return (
        min(params.temperature or 1.0, _HOTTEST),
        params.top_k or vocab_size,
        OFF if params.top_p in (None, 1) else params.top_p,
        params.min_p or 0.0,
        uniform,
    )


def penalize(
    logits: Tensor,
    ids: Tensor,
    counts: Tensor,
    *,
    presence: float,
    frequency: float,
    repetition: float,
) -> None:
    """`tramontane.kernels.penalize.penalize`."""
    library = native()
    assert library is not None
    assert logits.dtype == torch.float32
    assert logits.is_contiguous()
    check(
        library.calls.tmk_penalize(
            logits.data_ptr(),
            logits.shape[0],
            ids.data_ptr(),
            counts.data_ptr(),
            len(ids),
            presence,
            frequency,
            repetition,
        )
    )


draw.why_not = penalize.why_not = why_not  # type: ignore[attr-defined]
draw.variant = penalize.variant = variant  # type: ignore[attr-defined]
