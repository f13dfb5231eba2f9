"""Keys and values in 8 bits: each vector of a head and token has a scale of its own.

The scale makes the vector's largest number the largest that the type holds, so nothing overflows,
and a token whose keys are large costs its neighbours no precision.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST: dict[torch.dtype, float] = {torch.float8_e4m3fn: 448.0, torch.int8: 127.0}
"""8-bit types, and the largest number that each holds."""

SCALE = torch.float32

_LEAST = 2.0**-100
"""Vectors of nothing larger become zeros, since their scale's inverse may have no number."""


def quantize(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Round vectors to 8 bits.

    Args:
        x: [..., n].
        dtype: a key of `LARGEST`.

    Returns:
        [..., n] in ``dtype``, rounded to nearest, and their scales [...] in float32; NaN where a
        vector holds a number that is not finite.
    """
    x = x.float()
    largest = x.abs().amax(-1)
    limit = LARGEST[dtype]
    fine = largest < torch.inf
    factor = torch.where(fine & (largest >= _LEAST), limit / largest, 0.0)
    y = torch.where(fine[..., None], x, 0.0) * factor[..., None]
    if not dtype.is_floating_point:
        y = y.round()
    scales = torch.where(fine, torch.where(largest >= _LEAST, largest / limit, 0.0), torch.nan)
    return y.clamp(-limit, limit).to(dtype), scales


def dequantize(codes: Tensor, scales: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Stored vectors [..., n] as ``dtype``; ``scales`` [...], or None where they have none."""
    if scales is None:
        return codes.to(dtype)
    return (codes.float() * scales[..., None]).to(dtype)


def raw(codes: Tensor) -> Tensor:
    """The same memory in a type that can be indexed, which float8 cannot be everywhere."""
    return codes.view(torch.uint8) if codes.dtype is torch.float8_e4m3fn else codes
