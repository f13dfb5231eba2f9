"""Lets every operator of a model choose its kernel, once, after loading."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn


def bind_kernels(
    model: nn.Module,
    device: torch.device,
    dtype: torch.dtype,
    elsewhere: Mapping[nn.Module, torch.device] | None = None,
) -> None:
    """Call ``bind_kernels(device, dtype)`` of each module that has it, then, parts before wholes,
    ``bind_whole(device, dtype)``, by which a module may have its whole forward computed in one
    call. A module that was never bound uses the reference; one whose parts have been replaced or
    changed is to be bound again.

    Args:
        model: its weights are in place.
        device: where it runs.
        dtype: type of its activations.
        elsewhere: layers on other devices. A whole that spans several devices is not bound.
    """
    places = {part: at for layer, at in (elsewhere or {}).items() for part in layer.modules()}
    for module in model.modules():
        bind = getattr(module, "bind_kernels", None)
        if bind is not None:
            bind(places.get(module, device), dtype)
    for module in reversed(list(model.modules())):
        bind = getattr(module, "bind_whole", None)
        spans = places and module not in places and not places.keys().isdisjoint(module.modules())
        if bind is not None and not spans:
            bind(places.get(module, device), dtype)
