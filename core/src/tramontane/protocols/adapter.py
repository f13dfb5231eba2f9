"""What an adapter plug-in (LoRA, X-LoRA, AnyMoE) implements."""

from __future__ import annotations

from typing import Any, Protocol

from torch import nn


class Adapter(Protocol):
    """Built once a model, from the fields of its ``Which`` variant; then asked, linear by linear,
    while the loader binds."""

    def wrap(self, name: str, linear: nn.Module) -> nn.Module:
        """The module to put in place of ``linear``, which is called ``name`` in the model; the
        same object when this adapter leaves it alone."""
        ...

    def finish(self, model: nn.Module) -> None:
        """Called when every linear has been offered.

        Raises:
            CheckpointError: adapter tensors that no linear took; the message names them.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Name, rank, bytes, for listings."""
        ...
