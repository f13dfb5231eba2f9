"""``quantization_config`` of compressed-tensors: which modules are packed, and how.

Format: https://github.com/vllm-project/compressed-tensors. ``config_groups`` holds schemes and the
modules they are meant for, by exact name, by a regular expression after ``re:``, or by class.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Self

from attrs import frozen

from tramontane.errors import CheckpointError, ConfigError

LAYOUTS: Mapping[str, tuple[str, ...]] = {
    "pack-quantized": ("int",),
    "int-quantized": ("int",),
    "float-quantized": ("float",),
    "naive-quantized": ("int", "float"),
}
"""``format`` → the types of number that it holds."""

CLASSES = ("Linear", "Embedding")
"""Targets that are classes of modules."""

_MIXED = "mixed-precision"
_EMBEDDING = re.compile(r"wte$|.*embed")


@frozen(kw_only=True)
class Scheme:
    """How one group of weights is stored.

    Attributes:
        layout: a key of `LAYOUTS`.
        kind: ``"int"`` or ``"float"``.
        bits: of a number.
        symmetric: whether there are no zero points.
        tile: rows and columns of a weight that share a scale; None for all there are.
    """

    layout: str
    kind: str
    bits: int
    symmetric: bool
    tile: tuple[int | None, int | None]

    @classmethod
    def read(cls, group: Mapping[str, Any], layout: str, key: str) -> Self:
        """
        Args:
            group: one of ``config_groups``, with ``weights``.
            layout: of the group, or of all.
            key: where it stands, for errors.

        Raises:
            ConfigError: a setting that is not covered, by key.
        """
        weights, inside = group["weights"], f"{key}.weights"
        kind = _lowered(weights.get("type", "int"))
        _covered(f"{inside}.type", kind, LAYOUTS[layout])
        bits = weights.get("num_bits", 8)
        _covered(f"{inside}.num_bits", bits, (8,) if kind == "float" else range(1, 9))
        symmetric = weights.get("symmetric", True)
        _covered(f"{inside}.symmetric", symmetric, (True,) if kind == "float" else (True, False))
        _covered(f"{inside}.dynamic", weights.get("dynamic") or False, (False,))
        tile = _tile(weights, inside)
        return cls(layout=layout, kind=kind, bits=bits, symmetric=symmetric, tile=tile)


@frozen(kw_only=True)
class Schemes:
    """The schemes of a model.

    Attributes:
        targets: target → scheme, in the order in which they are given.
        ignored: modules that are stored plain, written like targets.
    """

    targets: Mapping[str, Scheme]
    ignored: Sequence[str]

    @classmethod
    def read(cls, settings: Mapping[str, Any]) -> Self:
        """
        Raises:
            ConfigError: a setting that is not covered, by key.
        """
        sparsity, transform = settings.get("sparsity_config"), settings.get("transform_config")
        if sparsity:
            layout = sparsity.get("format") if isinstance(sparsity, Mapping) else sparsity
            _covered("sparsity_config.format", layout, ("dense",))
        if transform and (not isinstance(transform, Mapping) or transform.get("config_groups")):
            raise ConfigError(
                "quantization_config.transform_config asks for rotations of the activations, which "
                "are not covered"
            )
        if settings.get("moe_sparsity_config"):
            raise ConfigError("quantization_config.moe_sparsity_config is not covered")
        targets: dict[str, Scheme] = {}
        groups = settings.get("config_groups")
        for name, group in _mapping("config_groups", groups).items():
            key = f"config_groups.{name}"
            if _mapping(key, group).get("weights") is None:
                continue  # of activations alone
            _mapping(f"{key}.weights", group["weights"])
            own = group.get("format") is not None or settings.get("format") == _MIXED
            where = f"{key}.format" if own else "format"
            _covered(where, (group if own else settings).get("format"), tuple(LAYOUTS))
            scheme = Scheme.read(group, (group if own else settings)["format"], key)
            for target in _patterns(f"{key}.targets", group.get("targets")):
                if target[:1].isupper() and "." not in target:
                    _covered(f"{key}.targets", target, CLASSES)
                targets[target] = scheme
        if not targets:
            raise ConfigError("quantization_config.config_groups names no weights")
        ignored = settings.get("ignore")
        return cls(targets=targets, ignored=_patterns("ignore", ignored) if ignored else ())

    def of(self, module: str) -> Scheme:
        """The scheme of a module that is stored packed: that of its name, else that of an
        expression, else that of its class.

        Raises:
            CheckpointError: none covers it, or it should be plain.
        """
        if any(_named(module, pattern) for pattern in self.ignored):
            raise CheckpointError(
                f"{module} is stored packed, and quantization_config.ignore says that it is not"
            )
        ordered = sorted(self.targets, key=lambda target: target.startswith("re:"))
        kind = "Embedding" if _EMBEDDING.match(module.rpartition(".")[2]) else "Linear"
        found = next((target for target in ordered if _named(module, target)), kind)
        if found not in self.targets:
            raise CheckpointError(
                f"{module} is stored packed, and no group of quantization_config.config_groups "
                f"covers it; their targets are {', '.join(map(repr, self.targets))}"
            )
        return self.targets[found]


def _named(module: str, pattern: str) -> bool:
    if pattern.startswith("re:"):
        return re.match(pattern.removeprefix("re:"), module) is not None
    return pattern == module


def _tile(weights: Mapping[str, Any], key: str) -> tuple[int | None, int | None]:
    size = weights.get("group_size")
    if size is not None and (type(size) is not int or (size < 1 and size != -1)):
        raise ConfigError(f"quantization_config.{key}.group_size is {size!r}; a count is expected")
    usual = "tensor" if size is None else "channel" if size == -1 else "group"
    strategy = _lowered(weights.get("strategy") or usual)
    _covered(f"{key}.strategy", strategy, ("tensor", "channel", "group", "block"))
    match strategy:
        case "tensor":
            return None, None
        case "channel":
            return 1, None
        case "group":
            if size is None or size < 1:
                raise ConfigError(f"quantization_config.{key}.group_size is missing")
            return 1, size
    block = weights.get("block_structure")
    if isinstance(block, str):
        block = [int(part) if part.isdecimal() else part for part in block.split("x")]
    sizes = block if isinstance(block, list | tuple) else []
    if len(sizes) != 2 or not all(type(side) is int and side > 0 for side in sizes):
        raise ConfigError(
            f"quantization_config.{key}.block_structure is {block!r}; two counts are expected"
        )
    return sizes[0], sizes[1]


def _covered(key: str, value: Any, allowed: Sequence[Any]) -> None:
    if not any(type(value) is type(choice) and value == choice for choice in allowed):
        raise ConfigError(
            f"quantization_config.{key} is {value!r}; covered are {', '.join(map(repr, allowed))}"
        )


def _lowered(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def _mapping(key: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"quantization_config.{key} is {value!r}; settings by name are expected there"
        )
    return value


def _patterns(key: str, value: Any) -> tuple[str, ...]:
    """Names and expressions, the latter known to be valid."""
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise ConfigError(f"quantization_config.{key} is {value!r}; a list of names is expected")
    for item in value:
        try:
            re.compile(item.removeprefix("re:") if item.startswith("re:") else "")
        except re.error as cause:
            raise ConfigError(f"quantization_config.{key}: {item!r} is invalid, {cause}") from cause
    return tuple(value)
