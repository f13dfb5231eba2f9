"""Which of a model's parameters belong to which layer, and how many bytes each takes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Self

import torch
from attrs import frozen
from torch import nn

from tramontane.errors import ConfigError
from tramontane.loading.rules import Arrangement, Cut, Recipe, Stacked, Stored, Transposed
from tramontane.protocols import Checkpoint, InSituPlan, PackedWeight


@frozen
class LayerNames:
    """Names of what lies in the layers of a model: those that each have a cache.

    Attributes:
        prefix: name of the list they are in, ``"model.layers"``.
    """

    prefix: str

    @classmethod
    def of(cls, model: nn.Module, num_layers: int) -> Self:
        """Find the list of the layers.

        Raises:
            ConfigError: the architecture has no such list, so its layers cannot be told apart.
        """
        lists = [
            name
            for name, module in model.named_modules()
            if isinstance(module, nn.ModuleList) and len(module) == num_layers
        ]
        named = [name for name in lists if name.rpartition(".")[2] == "layers"]
        if not named:
            raise ConfigError(
                f"{type(model).__name__} has no list `layers` of the {num_layers} layers that it "
                f"declares caches for, so single layers can be neither placed nor quantized apart: "
                f"leave out topology and num_device_layers"
            )
        return cls(min(named, key=len))

    def index(self, name: str) -> int | None:
        """Layer of a parameter; None for what lies outside the layers."""
        match = re.match(r"(\d+)\.", name.removeprefix(f"{self.prefix}."))
        inside = match is not None and name.startswith(f"{self.prefix}.")
        return int(match[1]) if match is not None and inside else None

    def modules(self, model: nn.Module) -> nn.ModuleList:
        """The layers themselves."""
        found = model.get_submodule(self.prefix)
        assert isinstance(found, nn.ModuleList)
        return found


def stored_names(recipe: Recipe) -> list[str]:
    """Names in the checkpoint of what a recipe takes."""
    match recipe:
        case Stored():
            return [recipe.name]
        case Cut() | Transposed():
            return stored_names(recipe.source)
        case Stacked():
            return [name for part in recipe.parts for name in stored_names(part)]


def parameter_bytes(
    model: nn.Module,
    arrangement: Arrangement,
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    packing: InSituPlan | None = None,
) -> Mapping[str, int]:
    """Bytes of every parameter in memory, shared ones once, without reading any data.

    Args:
        model: on the meta device.
        arrangement: how its parameters come out of ``checkpoint``.
        dtype: of those that are not packed.
        packing: what in-situ quantization makes of them.
    """
    sizes: dict[str, int] = {}
    for name, module in model.named_modules():
        exact = getattr(module, "FLOAT32", ())
        buffers = {
            k: b for k, b in module._buffers.items() if k not in module._non_persistent_buffers_set
        }
        for leaf, meta in {**module._parameters, **buffers}.items():
            if meta is None:
                continue
            full = f"{name}.{leaf}" if name else leaf
            origin = arrangement.aliases.get(full, full)
            packed = None if packing is None else packing.nbytes(origin)
            if packed is None:
                packed = _packed_bytes(arrangement.recipes[origin], checkpoint)
            plain = meta.nbytes if leaf in exact or not meta.is_floating_point() else None
            sizes[origin] = packed or plain or meta.numel() * dtype.itemsize
    return sizes


def _packed_bytes(recipe: Recipe, checkpoint: Checkpoint) -> int | None:
    """What a weight takes that is packed in the file; None for a plain one."""
    match recipe:
        case Stored():
            value = checkpoint.tensor(recipe.name)
            return value.nbytes if isinstance(value, PackedWeight) else None
        case Transposed():
            return _packed_bytes(recipe.source, checkpoint)
        case Cut():
            whole = _packed_bytes(recipe.source, checkpoint)
            share = recipe.sizes[recipe.index] / max(sum(recipe.sizes), 1)
            return None if whole is None else int(whole * share)
        case Stacked():
            parts = [_packed_bytes(part, checkpoint) for part in recipe.parts]
            return None if None in parts else sum(part or 0 for part in parts)
