"""Quantizing in place: while a model is loaded, and later, while it serves."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tramontane.hooks import PluginManager
from tramontane.kernels import dispatch
from tramontane.nn import (
    ExpertLinear,
    PackedEmbedding,
    PackedExpertLinear,
    PackedLinear,
    bind_kernels,
)
from tramontane.protocols import InSituPlan, InSituQuantizer, PackedWeight
from tramontane.protocols.pipeline import Progress

log = logging.getLogger(__name__)

Value = Tensor | PackedWeight

_TWINS: tuple[tuple[tuple[type[nn.Module], ...], type[nn.Module]], ...] = (
    ((nn.Linear, PackedLinear), PackedLinear),
    ((ExpertLinear, PackedExpertLinear), PackedExpertLinear),
    ((nn.Embedding, PackedEmbedding), PackedEmbedding),
)


def in_situ_quantizer(plugins: PluginManager) -> InSituQuantizer:
    """The policy of in-situ quantization.

    Raises:
        MissingPluginError: it is not installed.
    """
    quantizer: InSituQuantizer = plugins.resolve(plugins.get("quantizers", "isq"))(plugins)
    return quantizer


def shared_weights(model: nn.Module) -> dict[str, str]:
    """Parameter name → the earlier parameter with the same tensor, for every shared weight."""
    first: dict[int, str] = {}
    aliases: dict[str, str] = {}
    for name, module in model.named_modules():
        value = weight_of(module)
        if value is not None:
            origin = first.setdefault(id(value), f"{name}.weight")
            if origin != f"{name}.weight":
                aliases[f"{name}.weight"] = origin
    return aliases


def weight_of(module: nn.Module) -> Value | None:
    """The weight of a linear, a stack of experts or an embedding, plain or packed."""
    if not any(isinstance(module, kinds) for kinds, _ in _TWINS):
        return None
    weights: Any = module
    value: Value = getattr(weights, "packed", None) or weights.weight
    return value


def requantize(
    model: nn.Module,
    plan: InSituPlan,
    *,
    device: torch.device,
    dtype: torch.dtype,
    elsewhere: Mapping[nn.Module, torch.device] | None = None,
    on_progress: Progress | None = None,
) -> None:
    """Pack the weights of a model that nobody is using, one after the other, and bind kernels.

    Args:
        model: weights in place, plain or packed.
        plan: made for this model.
        device, dtype: where it runs, and in what.
        elsewhere: layers on other devices.
        on_progress: told after each weight.
    """
    modules = [(n, m, v) for n, m in model.named_modules() if (v := weight_of(m)) is not None]
    aliases = shared_weights(model)
    total, done = sum(value.nbytes for _, _, value in modules), 0
    packed: dict[str, Value] = {}
    while modules:
        name, module, value = modules.pop(0)
        done += value.nbytes
        origin = aliases.get(f"{name}.weight", f"{name}.weight")
        if origin not in packed:
            packed[origin] = plan.pack(origin, value)
        new = packed[origin]
        if new is not value and isinstance(new, PackedWeight):
            model.set_submodule(name, twin(module, new.to(value.device), dtype))
        # The old weight goes before the next one is made.
        del module, value
        if on_progress is not None:
            on_progress(done, total, name)
    bind_kernels(model, device, dtype, elsewhere)
    report_slow(model, device)


def twin(module: nn.Module, packed: PackedWeight, dtype: torch.dtype) -> nn.Module:
    """The packed module that takes the place of ``module``."""
    for kinds, cls in _TWINS:
        if isinstance(module, kinds):
            if cls is PackedEmbedding:
                return PackedEmbedding(packed, dtype)
            bias = module.bias
            return cls(packed, None if bias is None else bias.detach())  # type: ignore[operator]
    raise TypeError(f"{type(module).__name__} has no packed twin")


def report_slow(model: nn.Module, device: torch.device) -> None:
    """Say which formats of a model have no kernel of their own on its device."""
    formats = {
        weight.format
        for module in model.modules()
        if isinstance(weight := getattr(module, "packed", None), PackedWeight)
        and not isinstance(module, PackedEmbedding)
    }
    facts: Mapping[tuple[str, Any], str] = {
        (c.op, dict(c.facts).get("format")): c.name
        for c in dispatch.choices()
        if c.device == str(device)
    }
    slow = sorted(f for f in formats if facts.get(("packed_linear", f)) == "reference")
    if slow:
        log.warning(
            "no kernel on %s multiplies %s: such weights are de-quantized at each use, which "
            "is slow",
            device,
            ", ".join(slow),
        )
