"""Carries a forward from device to device where a model's layers lie on several.

Hooks on the layers where the device changes do it, so a model file knows nothing of devices, and a
model on one device has no hooks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from attrs import evolve
from torch import Tensor, nn

from tramontane.nn.rotary import Rope
from tramontane.protocols.batch import ForwardBatch


def install_transfers(
    layers: Sequence[nn.Module], devices: Sequence[torch.device], main: torch.device
) -> None:
    """Let each layer receive its arguments on its own device, and the last one's result return.

    Hidden states go from each layer to the next. The batch and the RoPE of a step come from the
    main device and are copied once to every other.

    Args:
        layers: called with positional arguments, among them the `ForwardBatch`.
        devices: where each of them is.
        main: where the forward begins and ends.
    """
    transfers = Transfers()
    before = main
    for layer, device in zip(layers, devices, strict=True):
        if device != main or before != main:
            layer.register_forward_pre_hook(transfers.into(device))
        before = device
    if before != main:
        layers[-1].register_forward_hook(transfers.back(main))


class Transfers:
    """What is copied in one forward. Not for two forwards at once."""

    def __init__(self) -> None:
        self._batch: ForwardBatch | None = None
        self._copies: dict[tuple[int, torch.device], tuple[Any, Any]] = {}

    def into(self, device: torch.device) -> Any:
        """A forward pre-hook that moves a layer's arguments to ``device``."""

        def pre_hook(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            self._begin(args)
            return tuple(self._moved(arg, device) for arg in args)

        return pre_hook

    def back(self, main: torch.device) -> Any:
        """A forward hook that moves a layer's result to ``main``, and forgets the copies."""

        def hook(_: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
            self._batch, self._copies = None, {}
            result: Tensor = moved(out, main)
            return result

        return hook

    def _begin(self, args: tuple[Any, ...]) -> None:
        batch = next((arg for arg in args if isinstance(arg, ForwardBatch)), None)
        if batch is not self._batch:
            self._batch, self._copies = batch, {}

    def _moved(self, arg: Any, device: torch.device) -> Any:
        """Hidden states differ from layer to layer; batch and RoPE do not. A cache is where its
        layer is."""
        if isinstance(arg, Tensor):
            return moved(arg, device)
        if not isinstance(arg, ForwardBatch | Rope):
            return arg
        key = id(arg), device
        if key not in self._copies:
            # The original is kept with its copy, so that no other object gets its id meanwhile.
            self._copies[key] = arg, moved(arg, device)
        return self._copies[key][1]


def moved(value: Any, device: torch.device) -> Any:
    """``value`` on ``device``; itself where it is there already."""
    if isinstance(value, Tensor):
        # Only copies to the CPU must be waited for: their reader knows nothing of streams.
        return value.to(device, non_blocking=device.type != "cpu")
    tensors = {
        field.name: tensor
        for field in value.__attrs_attrs__
        if isinstance(tensor := getattr(value, field.name), Tensor)
    }
    return evolve(value, **{name: moved(tensor, device) for name, tensor in tensors.items()})
