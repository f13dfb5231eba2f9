"""The JSON files beside the weights, with old and new keys brought together.

transformers 5 renamed ``torch_dtype`` to ``dtype`` and gathered ``rope_theta`` and
``rope_scaling`` in ``rope_parameters``. Architectures find both spellings, whichever the file has.
Until 2024 compressed-tensors kept in ``compression_config`` what is now ``quantization_config``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tramontane.errors import ConfigError, SourceError
from tramontane.text.json_files import read_json

LAYER_TYPES = ("full_attention", "sliding_attention")


def read_config(directory: Path) -> dict[str, Any]:
    """``config.json`` of a model directory, normalized.

    Raises:
        SourceError: it is absent or damaged; lists what there is.
        ConfigError: a key that every model shares has a value of the wrong kind.
    """
    data = read_json(directory / "config.json")
    if data is None:
        there = ", ".join(sorted(p.name for p in directory.iterdir())) or "nothing"
        raise SourceError(f"{directory} has no config.json; it holds {there}")
    return normalize(data)


def normalize(data: Mapping[str, Any]) -> dict[str, Any]:
    """The same configuration with old and new keys both present and equal.

    ``rope_parameters`` always carries ``rope_type`` and ``rope_theta``; ``rope_scaling`` is None
    when nothing is scaled. Where a file gives parameters per kind of layer, they stay as they
    are, and the old keys describe the full-attention layers (``rope_local_base_freq`` the
    sliding ones). ``compression_config`` becomes ``quantization_config``. Nested configurations
    (``text_config`` …) are treated alike.
    """
    config = dict(data)
    for key, value in config.items():
        if key.endswith("_config") and isinstance(value, Mapping) and "hidden_size" in value:
            config[key] = normalize(value)
    _join_dtype(config)
    _join_quantization(config)
    if config.get("rope_parameters") is not None:
        _spread_rope(config)
    elif config.get("rope_scaling") is not None or config.get("rope_theta") is not None:
        _gather_rope(config)
    return config


def _join_dtype(config: dict[str, Any]) -> None:
    dtype = config.get("dtype") or config.get("torch_dtype")
    if dtype is None:
        return
    if not isinstance(dtype, str):
        raise ConfigError(f"config key dtype is {dtype!r}; it must be a name such as 'bfloat16'")
    config["dtype"] = config["torch_dtype"] = dtype.removeprefix("torch.")


def _join_quantization(config: dict[str, Any]) -> None:
    """The key was renamed; before that its settings lay one level deeper, beside those of
    sparsity, and the method was called sparseml."""
    former = config.pop("compression_config", None)
    if not former or config.get("quantization_config"):
        return
    if not isinstance(former, Mapping):
        raise ConfigError(f"config key compression_config is {former!r}; it must be an object")
    settings = dict(former)
    nested = settings.pop("quantization_config", None) or {}
    if not isinstance(nested, Mapping):
        raise ConfigError(
            f"config key compression_config.quantization_config is {nested!r}; it must be an object"
        )
    settings |= nested
    if settings.get("quant_method") in (None, "sparseml"):
        settings["quant_method"] = "compressed-tensors"
    config["quantization_config"] = settings


def _scaling(value: Any, key: str) -> dict[str, Any]:
    """One set of RoPE parameters with today's key names."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"config key {key} is {value!r}; it must be an object or null")
    scaling = dict(value)
    former = scaling.pop("type", None)
    scaling["rope_type"] = scaling.get("rope_type") or former or "default"
    return scaling


def _gather_rope(config: dict[str, Any]) -> None:
    scaling = _scaling(config.get("rope_scaling") or {}, "rope_scaling")
    config["rope_scaling"] = None if scaling["rope_type"] == "default" else scaling
    config["rope_parameters"] = dict(scaling)
    if config.get("rope_theta") is not None:
        config["rope_parameters"]["rope_theta"] = config["rope_theta"]


def _spread_rope(config: dict[str, Any]) -> None:
    given = config["rope_parameters"]
    if not isinstance(given, Mapping):
        raise ConfigError(f"config key rope_parameters is {given!r}; it must be an object")
    if any(kind in given for kind in LAYER_TYPES):
        per_kind = {
            kind: _scaling(value, f"rope_parameters.{kind}")
            for kind, value in given.items()
            if value is not None
        }
        config["rope_parameters"] = per_kind
        parameters = per_kind.get("full_attention") or next(iter(per_kind.values()))
        local = per_kind.get("sliding_attention", {}).get("rope_theta")
        if local is not None:
            config.setdefault("rope_local_base_freq", local)
    else:
        parameters = config["rope_parameters"] = _scaling(given, "rope_parameters")
        if parameters.get("rope_theta") is None and config.get("rope_theta") is not None:
            parameters["rope_theta"] = config["rope_theta"]
    for key in ("rope_theta", "partial_rotary_factor"):
        if parameters.get(key) is not None:
            config[key] = parameters[key]
    rest = {k: v for k, v in parameters.items() if k not in ("rope_theta", "partial_rotary_factor")}
    config["rope_scaling"] = None if parameters["rope_type"] == "default" else rest
