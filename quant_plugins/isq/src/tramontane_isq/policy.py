"""Which weights of a model are packed while loading, and with which type."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn

from tramontane.errors import ConfigError, ValidationError
from tramontane.hooks import PluginManager
from tramontane.nn import (
    ExpertLinear,
    MoE,
    PackedEmbedding,
    PackedExpertLinear,
    PackedLinear,
)
from tramontane.protocols import InSituSettings, PackedWeight
from tramontane_isq.calibration import Collector
from tramontane_isq.imatrix import for_modules, read_imatrix
from tramontane_isq.types import FALLBACKS, SENSITIVE, IsqType, Types

log = logging.getLogger(__name__)

EXPERTS = (ExpertLinear, PackedExpertLinear)
LINEARS = (nn.Linear, PackedLinear, *EXPERTS)
EMBEDDINGS = (nn.Embedding, PackedEmbedding)

ROUTERS = frozenset({"gate", "router", "shared_expert_gate", "wg"})
"""Last part of the names of linears that choose among experts: small, and ruinous to get wrong."""

HEADS = frozenset({"lm_head", "embed_out"})

_TOWER = re.compile(
    r"(^|\.)(vision\w*|visual|audio\w*|multi_modal_projector|multimodal_projector|mm_projector|"
    r"embed_vision|embed_audio|image_newline|connector|resampler|img_processor)(\.|$)"
)
"""Parts of multimodal models that in-situ quantization leaves alone."""


@frozen(kw_only=True)
class Decision:
    """What becomes of one weight.

    Attributes:
        name: of its parameter; of the first one when several share it.
        shape: (out, in) or (experts, out, in).
        asked: the type before any stand-in.
        type: the type it gets; None where no type's blocks divide its rows.
        packed_bytes: its size then.
    """

    name: str
    shape: tuple[int, ...]
    asked: str
    type: IsqType | None
    packed_bytes: int = 0

    @property
    def module(self) -> str:
        """Name of the module it belongs to."""
        return self.name.removesuffix(".weight")

    @property
    def is_fallback(self) -> bool:
        """Whether another type stands in for the one asked for."""
        return self.type is not None and self.type.name != self.asked


@frozen(kw_only=True)
class IsqPlan:
    """Decisions for one model; a `tramontane.protocols.InSituPlan`.

    Attributes:
        decisions: by parameter name, in the order of the model.
        importance: module name → importance of columns.
    """

    decisions: Mapping[str, Decision]
    importance: Mapping[str, Tensor]

    @property
    def elements(self) -> int:
        return sum(_count(d.shape) for d in self.decisions.values() if d.type is not None)

    @property
    def packed_bytes(self) -> int:
        return sum(d.packed_bytes for d in self.decisions.values())

    def packs(self, name: str) -> bool:
        decision = self.decisions.get(name)
        return decision is not None and decision.type is not None

    def nbytes(self, name: str) -> int | None:
        decision = self.decisions.get(name)
        return None if decision is None or decision.type is None else decision.packed_bytes

    def pack(self, name: str, weight: Tensor | PackedWeight) -> Tensor | PackedWeight:
        decision = self.decisions.get(name)
        if decision is None or decision.type is None:
            return weight
        kind = decision.type
        plain = weight.dequantize() if isinstance(weight, PackedWeight) else weight.detach()
        # A stand-in has other blocks than those that the statistics are meant for.
        importance = None if decision.is_fallback else self.importance.get(decision.module)
        try:
            return kind.quantizer.quantize(plain, kind.name, importance=importance)
        except ConfigError as cause:
            raise ConfigError(f"{name} cannot be quantized to {kind.name}: {cause}") from cause


class IsqPolicy:
    """The quantizer named ``isq``. See `tramontane.protocols.InSituQuantizer`."""

    def __init__(self, plugins: PluginManager) -> None:
        self._plugins = plugins

    def check(self, settings: InSituSettings, device: torch.device) -> None:
        if settings.type_name is not None:
            Types(self._plugins, device).get(settings.type_name)
        if settings.imatrix is not None:
            read_imatrix(settings.imatrix, self._plugins)

    def collect(self, model: nn.Module) -> Collector:
        return Collector(model)

    def plan(
        self,
        model: nn.Module,
        aliases: Mapping[str, str],
        settings: InSituSettings,
        device: torch.device,
    ) -> IsqPlan:
        types = Types(self._plugins, device)
        modules = dict(_modules(model))
        if settings.organization == "moqe" and not any(
            isinstance(module, EXPERTS) for module in modules.values()
        ):
            raise ValidationError(
                f"{type(model).__name__} has no routed experts, which organization=MoQE is for; "
                f"leave it out to quantize every linear"
            )
        decisions: dict[str, Decision] = {}
        extra = tuple(getattr(type(model), "ISQ_LAYERS", ()))
        for origin, members in _groups(modules, aliases).items():
            asked = self._asked(members, modules, settings, types, extra)
            if asked is None:
                continue
            shape = _shape(modules[members[0]])
            decisions[origin] = _decide(origin, shape, asked, types)
        _report(decisions.values())
        importance = dict(settings.importance or {})
        if settings.imatrix is not None:
            given = read_imatrix(settings.imatrix, self._plugins)
            importance |= for_modules(given, [(d.module, d.shape) for d in decisions.values()])
            if not importance:
                raise ValidationError(
                    f"{settings.imatrix} has no statistics for any weight to quantize; it knows "
                    f"{', '.join(list(given.values)[:4])} …: it belongs to another model"
                )
        _check_importance(decisions.values(), importance)
        return IsqPlan(decisions=decisions, importance=importance)

    def _asked(
        self,
        members: list[str],
        modules: Mapping[str, nn.Module],
        settings: InSituSettings,
        types: Types,
        extra: tuple[str, ...],
    ) -> IsqType | None:
        """The type wanted for one tensor, which the modules ``members`` share."""
        if settings.override is not None:
            for name in members:
                pinned = settings.override(f"{name}.weight")
                if pinned is not None:
                    return types.get(pinned)
        if settings.type_name is None:
            return None
        touched = [
            name
            for name in members
            if _touched(name, modules[name], settings.organization)
            or any(re.fullmatch(pattern, name) for pattern in extra)
        ]
        if not touched:
            return None
        kind = types.get(settings.type_name)
        if any(name.rpartition(".")[2] in HEADS for name in touched):
            return types.get(SENSITIVE.get(kind.name, kind.name))
        return kind


def _modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules whose weight may be packed at all. Routers and towers are, by an override."""
    routers = {id(m.gate) for m in model.modules() if isinstance(m, MoE)}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, LINEARS + EMBEDDINGS) and id(module) not in routers:
            yield name, module


def _groups(modules: Mapping[str, nn.Module], aliases: Mapping[str, str]) -> dict[str, list[str]]:
    """Parameter name → the modules that share it."""
    groups: dict[str, list[str]] = {}
    for name in modules:
        parameter = f"{name}.weight"
        groups.setdefault(aliases.get(parameter, parameter), []).append(name)
    return groups


def _touched(name: str, module: nn.Module, organization: str) -> bool:
    """Whether a type for the whole model is meant for this module."""
    if isinstance(module, EMBEDDINGS) or _TOWER.search(name):
        return False
    if organization == "moqe":
        return isinstance(module, EXPERTS)
    return name.rpartition(".")[2] not in ROUTERS


def _decide(name: str, shape: tuple[int, ...], asked: IsqType, types: Types) -> Decision:
    """The type asked for, or the first stand-in whose blocks divide the rows."""
    kind: IsqType | None = asked
    while kind is not None:
        size = kind.quantizer.packed_bytes(shape, kind.name)
        if size is not None:
            return Decision(name=name, shape=shape, asked=asked.name, type=kind, packed_bytes=size)
        instead = FALLBACKS.get(kind.name)
        kind = None if instead is None else types.get(instead)
    return Decision(name=name, shape=shape, asked=asked.name, type=None)


def _report(decisions: Any) -> None:
    """Say once what did not get the type that was asked for."""
    plain = [d for d in decisions if d.type is None]
    if plain:
        log.warning(
            "%d weights stay unquantized, because rows of %s are not whole blocks of %s: %s%s",
            len(plain),
            ", ".join(str(n) for n in sorted({d.shape[-1] for d in plain})),
            " or ".join(sorted({d.asked.upper() for d in plain})),
            ", ".join(d.module for d in plain[:4]),
            " …" if len(plain) > 4 else "",
        )
    for asked, used in sorted({(d.asked, d.type.name) for d in decisions if d.is_fallback}):
        count = sum(d.is_fallback and (d.asked, d.type.name) == (asked, used) for d in decisions)
        log.warning(
            "%d weights are %s instead of %s, whose blocks do not divide their rows",
            count, used.upper(), asked.upper(),
        )  # fmt: skip


def _check_importance(decisions: Any, importance: Mapping[str, Tensor]) -> None:
    """Statistics that are given must be of this model."""
    if not importance:
        return
    used = [d for d in decisions if d.module in importance]
    if not used:
        raise ValidationError(
            f"the importance matrix knows none of the weights to quantize; it has "
            f"{', '.join(list(importance)[:4])} …: it belongs to another model"
        )
    for decision in used:
        given = importance[decision.module]
        experts, (_, width) = decision.shape[:-2], decision.shape[-2:]
        if tuple(given.shape) not in {(width,), (*experts, width)}:
            raise ValidationError(
                f"the importance matrix has {list(given.shape)} numbers for {decision.module}, "
                f"whose weight has shape {list(decision.shape)}: it belongs to another model"
            )


def _shape(module: nn.Module) -> tuple[int, ...]:
    packed = getattr(module, "packed", None)
    return tuple(module.weight.shape if packed is None else packed.shape)  # type: ignore[arg-type]


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
