"""Reading a ``config.json`` into an architecture's frozen config class.

`read` fills the fields; what a file says that the arithmetic does not cover is refused by key, so
that a model never runs with half of its settings ignored::

    @classmethod
    def from_dict(cls, data):
        return read(cls, data, supported={"hidden_act": ACTIVATIONS}, rope_parameters=...)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from attrs import NOTHING, fields

from tramontane.errors import ConfigError

Config = TypeVar("Config")

_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "str": (str,),
    "tuple[int, ...]": (list, tuple),
    "tuple[float, ...]": (list, tuple),
    "tuple[str, ...]": (list, tuple),
}

_UNBOUNDED = {"Infinity": float("inf"), "-Infinity": float("-inf")}
"""What JSON cannot say, and transformers 5 writes as ``{"__float__": "Infinity"}``."""


def read(
    cls: type[Config],
    data: Mapping[str, Any],
    *,
    supported: Mapping[str, Collection[Any]] | None = None,
    **derived: Any,
) -> Config:
    """An instance of ``cls`` with its fields taken from ``data``.

    Args:
        cls: attrs class whose field names are those of the file. A field without a default is
            required; null in the file counts as absent.
        data: content of ``config.json``. Keys that are no field are ignored.
        supported: values the architecture covers, by key, whether or not it is a field. A key
            absent from the file is not checked.
        derived: fields the caller computed from several keys; they win over ``data``.

    Raises:
        ConfigError: a required key is missing, of a wrong type, or holds an unsupported value.
    """
    for key, values in (supported or {}).items():
        found = data.get(key)
        if found is not None and found not in list(values):
            raise ConfigError(
                f"{key} is {found!r}; {_named(cls)} supports {_listed(values)}. "
                "The checkpoint may belong to another architecture (see `arch`)."
            )
    values_of: dict[str, Any] = {}
    for attribute in fields(cls):  # type: ignore[arg-type]
        name = attribute.name
        if name in derived:
            values_of[name] = derived[name]
        elif data.get(name) is not None:
            values_of[name] = check_type(name, data[name], attribute.type)
        elif attribute.default is NOTHING:
            raise ConfigError(f"config.json lacks {name}, which {_named(cls)} requires")
    return cls(**values_of)


def check_type(key: str, value: Any, annotation: Any) -> Any:
    """``value`` as the annotated type: integers serve as floats, lists become tuples. Annotations
    other than numbers, strings and tuples of them are left alone.

    Raises:
        ConfigError: naming ``key``, the value and the type.
    """
    name = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    wanted = name.removesuffix("| None").strip()
    accepted = _TYPES.get(wanted)
    if accepted is None:
        return value
    if wanted == "float" and isinstance(value, Mapping):
        value = _UNBOUNDED.get(str(value.get("__float__")), value)
    fits = isinstance(value, accepted) and (wanted == "bool" or not isinstance(value, bool))
    if not fits:
        raise ConfigError(f"{key} is {value!r}; expected {wanted}")
    if wanted.startswith("tuple"):
        item = wanted[len("tuple[") : -len(", ...]")]
        return tuple(check_type(f"{key}[{i}]", v, item) for i, v in enumerate(value))
    return float(value) if wanted == "float" else value


def attention_heads(data: Mapping[str, Any]) -> dict[str, int]:
    """``num_key_value_heads`` and ``head_dim``, for `read`; where the file leaves them out, every
    head has its own keys and the width is shared out evenly.

    Raises:
        ConfigError: the width cannot be shared out.
    """
    given = {
        key: check_type(key, data[key], "int")
        for key in ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim")
        if data.get(key) is not None
    }
    hidden_size, num_heads = given.pop("hidden_size", None), given.pop("num_attention_heads", None)
    if hidden_size is None or num_heads is None:
        return given  # `read` names what is missing
    given.setdefault("num_key_value_heads", num_heads)
    if "head_dim" not in given:
        if num_heads < 1 or hidden_size % num_heads:
            raise ConfigError(
                f"hidden_size {hidden_size} is no multiple of num_attention_heads {num_heads}, "
                "and head_dim is not given"
            )
        given["head_dim"] = hidden_size // num_heads
    return given


def check_positive(config: object, *names: str) -> None:
    """Refuse a count below one.

    Raises:
        ConfigError: naming the key and the value.
    """
    for name in names:
        value = getattr(config, name)
        if value < 1:
            raise ConfigError(f"{name} is {value}; {_named(type(config))} needs at least 1")


def check_heads(config: Any) -> None:
    """Refuse head counts that attention cannot share out: key/value heads must divide heads.

    Raises:
        ConfigError: naming both keys.
    """
    check_positive(config, "num_attention_heads", "num_key_value_heads", "head_dim")
    if config.num_attention_heads % config.num_key_value_heads:
        raise ConfigError(
            f"num_attention_heads is {config.num_attention_heads}, which is no multiple of "
            f"num_key_value_heads {config.num_key_value_heads}"
        )


def check_experts(config: Any, total: str) -> None:
    """Refuse to choose more experts for a token than there are.

    Args:
        total: key of their number; 0 where a model has none.

    Raises:
        ConfigError: naming both keys.
    """
    num_experts = getattr(config, total)
    if not num_experts:
        return
    check_positive(config, "num_experts_per_tok")
    if config.num_experts_per_tok > num_experts:
        raise ConfigError(
            f"num_experts_per_tok is {config.num_experts_per_tok}, but {total} only {num_experts}"
        )


def check_layer_types(config: Any, *kinds: str) -> None:
    """Refuse ``layer_types`` that do not name one of ``kinds`` for each layer.

    Raises:
        ConfigError: naming the key and what it holds.
    """
    if len(config.layer_types) != config.num_hidden_layers:
        raise ConfigError(
            f"layer_types has {len(config.layer_types)} entries for {config.num_hidden_layers} "
            "layers"
        )
    for kind in config.layer_types:
        if kind not in kinds:
            raise ConfigError(f"layer_types names {kind!r}; {' and '.join(kinds)} exist")


def _named(cls: type) -> str:
    return cls.__name__.removesuffix("Config")


def _listed(values: Collection[Any]) -> str:
    return ", ".join(sorted(map(repr, values)))
