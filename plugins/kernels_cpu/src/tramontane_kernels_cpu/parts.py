"""What the functions that compute whole modules ask of a module's parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from tramontane.nn import activation

Whole = Callable[..., Tensor | None]

ACTS: dict[Any, int] = {activation("silu"): 0, activation("gelu_pytorch_tanh"): 1}
"""Activations of gates, and the library's number for each."""
ACTS |= {activation("gelu"): 2, activation("relu"): 3}


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module computes what ``kind`` does."""
    return isinstance(module, kind) and type(module).forward is kind.forward


def listened(parts: Iterable[nn.Module]) -> bool:
    """Whether somebody has hooks on a part, as calibration does."""
    return any(part._forward_pre_hooks or part._forward_hooks for part in parts)
