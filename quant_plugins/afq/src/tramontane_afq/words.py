"""Streams of codes as MLX and UQFF store them: in 32-bit words, little end first."""

from __future__ import annotations

import torch
from torch import Tensor

from tramontane.nn import GroupAffineWeight


def affine_from_words(
    words: Tensor, scales: Tensor, biases: Tensor, *, bits: int
) -> GroupAffineWeight:
    """The weight whose rows are words [..., in * bits / 32]; shares their memory.

    Raises:
        ValueError: dtypes or shapes that do not go together.
    """
    if words.dtype not in (torch.uint32, torch.int32):
        raise ValueError(f"codes must be 32-bit words, not {words.dtype}")
    if not (scales.dtype.is_floating_point and biases.dtype.is_floating_point):
        raise ValueError(f"scales and biases must be floats, not {scales.dtype}, {biases.dtype}")
    codes = words.contiguous().view(torch.uint8)
    return GroupAffineWeight(codes, scales, biases, bits=bits)


def words_of(weight: GroupAffineWeight) -> Tensor:
    """The stream of each row as uint32 [..., in * bits / 32]."""
    return weight.codes.contiguous().view(torch.uint32)
