"""Chooses one implementation of an operator when a model is bound; nothing is chosen per call."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

import torch
from attrs import frozen

from tramontane.errors import ConfigError, PluginError
from tramontane.hooks import KernelSpec, plugin_manager
from tramontane.kernels.features import features
from tramontane.kernels.reference import OPERATORS
from tramontane.protocols.quantizer import PackedWeight

log = logging.getLogger(__name__)

ENVIRONMENT = "TRAMONTANE_KERNELS"
"""``reference`` keeps every plug-in kernel out; useful to find out whether one is at fault."""

Operator = Callable[..., Any]

WHOLE_MODULES = (
    "rms_norm",
    "self_attention",
    "gated_mlp",
    "gated_experts",
    "pre_norm_layer",
    "decoder_layers",
)
"""Modules of `tramontane.nn`, or what they hold, that a kernel may compute in one call."""


@frozen
class Candidate:
    """An implementation and why it may not be used.

    Attributes:
        name: of its spec; ``reference`` for core's own.
        priority: the highest usable one is bound.
        refusal: None when it is usable.
        variant: which of its forms runs here and why, in its own words; None where it has but one.
    """

    name: str
    priority: int
    refusal: str | None = None
    variant: str | None = None

    def __str__(self) -> str:
        return self.name if self.refusal is None else f"{self.name} (not used: {self.refusal})"


@frozen
class Choice:
    """What was bound for one operator on one device, for ``tramontane doctor``."""

    op: str
    device: str
    facts: tuple[tuple[str, Any], ...]
    name: str
    others: tuple[Candidate, ...]


_Key = tuple[str, str, str, tuple[tuple[str, Any], ...]]
_choices: dict[_Key, tuple[Choice, Operator]] = {}


def bind(op: str, device: torch.device, **facts: Any) -> Operator:
    """The best usable implementation of ``op``.

    A kernel's target is a callable with the signature of the reference. It may carry an attribute
    ``supports(**facts) -> bool``, called with everything in ``facts``; ``prepare(weight)``, see
    `prepare`; ``why_not() -> str | None``, which says why it cannot run on this machine at all; and
    ``variant() -> str``, which says which of its forms does.

    Args:
        op: a key of `tramontane.kernels.reference.OPERATORS`.
        device: where it will run.
        facts: what is known when the model is bound and does not change: ``dtype``, ``head_dim``,
            ``format`` of a packed weight, ….

    Raises:
        ConfigError: no such operator, or an unknown value of ``TRAMONTANE_KERNELS``.
    """
    if op not in OPERATORS:
        raise ConfigError(f"there is no operator {op!r}; operators are {', '.join(OPERATORS)}")
    mode = os.environ.get(ENVIRONMENT, "auto")
    if mode not in ("auto", "reference"):
        raise ConfigError(f"{ENVIRONMENT} is {mode!r}; use auto or reference")
    key = (mode, op, str(device), tuple(sorted(facts.items(), key=lambda item: item[0])))
    if key in _choices:
        return _choices[key][1]
    if mode == "reference":
        return _record(key, "reference", OPERATORS[op], ())
    specs = sorted(
        (spec for spec in plugin_manager().specs("kernels") if spec.op == op),
        key=lambda spec: -spec.priority,
    )
    seen: list[Candidate] = []
    for spec in specs:
        refusal, operator = _try(spec, device, facts)
        if operator is not None:
            log.info("%s on %s: %s", op, device, spec.name)
            return _record(key, spec.name, operator, tuple(seen))
        seen.append(Candidate(spec.name, spec.priority, refusal))
    return _record(key, "reference", OPERATORS[op], tuple(seen))


def prepare(operator: Operator, weight: PackedWeight) -> Any:
    """``weight`` in the form ``operator`` multiplies with: what its attribute ``prepare(weight)``
    gives, or the weight itself where it has none. Called once, when a module is bound."""
    own = getattr(operator, "prepare", None)
    return weight if own is None else own(weight)


def bind_whole(op: str, module: Any, device: torch.device, dtype: torch.dtype) -> Operator | None:
    """What computes the whole ``forward`` of ``module`` in one call, or None where no kernel does.

    A kernel's target is then a callable ``(module, dtype)`` that looks at the module, whose parts
    are bound, and gives such an operator or None. The operator gives None for a call it does not
    cover. Binding the module again starts afresh.

    Args:
        op: a member of `WHOLE_MODULES`.
        module: its weights are in place, its parts bound.
        device, dtype: of its activations.
    """
    if op not in WHOLE_MODULES:
        raise ConfigError(f"no module is bound as {op!r}; known are {', '.join(WHOLE_MODULES)}")
    if os.environ.get(ENVIRONMENT) == "reference":
        return None
    specs = (spec for spec in plugin_manager().specs("kernels") if spec.op == op)
    for spec in sorted(specs, key=lambda spec: -spec.priority):
        _, make = _resolved(spec, device)
        whole: Operator | None = None if make is None else make(module, dtype)
        if whole is not None:
            log.debug("%s on %s: %s", op, device, spec.name)
            return whole
    return None


def choices() -> list[Choice]:
    """Everything bound so far in this process."""
    return [choice for choice, _ in _choices.values()]


def candidates(op: str, device: torch.device) -> list[Candidate]:
    """Every implementation of ``op``, best first, with the reason why one cannot run here."""
    specs = [spec for spec in plugin_manager().specs("kernels") if spec.op == op]
    found = []
    for spec in specs:
        refusal, operator = _resolved(spec, device)
        tell = getattr(operator, "variant", None)
        found.append(Candidate(spec.name, spec.priority, refusal, tell and tell()))
    found.sort(key=lambda c: -c.priority)
    return [*found, Candidate("reference", 0)]


def _refusal(spec: KernelSpec, device: torch.device) -> str | None:
    if spec.device != device.type:
        return f"runs on {spec.device}"
    lacking = [name for name in spec.requires if name not in features(device)]
    return f"{device} lacks {', '.join(lacking)}" if lacking else None


def _resolved(spec: KernelSpec, device: torch.device) -> tuple[str | None, Operator | None]:
    refusal = _refusal(spec, device)
    if refusal is not None:
        return refusal, None
    try:
        operator: Operator = plugin_manager().resolve(spec)
    except PluginError as error:
        # A broken kernel must not keep the model from running; the reference is always right.
        log.warning("kernel %s is not used: %s", spec.name, error)
        return str(error), None
    why_not = getattr(operator, "why_not", None)
    refusal = None if why_not is None else why_not()
    return (None, operator) if refusal is None else (refusal, None)


def _try(
    spec: KernelSpec, device: torch.device, facts: dict[str, Any]
) -> tuple[str | None, Operator | None]:
    refusal, operator = _resolved(spec, device)
    supports = getattr(operator, "supports", None)
    if supports is not None and not supports(**facts):
        return f"does not support {facts}", None
    return refusal, operator


def _record(key: _Key, name: str, operator: Operator, others: tuple[Candidate, ...]) -> Operator:
    _, op, device, facts = key
    _choices[key] = (Choice(op, device, facts, name, others), operator)
    return operator
