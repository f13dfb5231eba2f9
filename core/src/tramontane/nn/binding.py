"""Lets every operator of a model choose its kernel, once, after loading."""

from __future__ import annotations

import torch
from torch import nn


def bind_kernels(model: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Call ``bind_kernels(device, dtype)`` of each module that has it. A module that was never
    bound uses the reference.

    Args:
        model: its weights are in place.
        device: where it runs.
        dtype: type of its activations.
    """
    for module in model.modules():
        bind = getattr(module, "bind_kernels", None)
        if bind is not None:
            bind(device, dtype)
