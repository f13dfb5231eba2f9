"""Metadata of a file to be written, from ``config.json``: the reverse of `metadata.config_of`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tramontane.errors import ConfigError
from tramontane_gguf.families import Family
from tramontane_gguf.latent import DEEPSEEK, latent_keys
from tramontane_gguf.mamba import GRANITE, granite_keys

_SAME = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "vocab_size": "vocab_size",
}


def settings(config: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """The architecture's own keys, without its prefix.

    Args:
        config: as `tramontane.loading.config.normalize` gives it.

    Raises:
        ConfigError: a value that files of this family cannot state.
    """
    found: dict[str, Any] = {}
    for key, name in _SAME.items():
        if config.get(name) is not None:
            found[key] = int(config[name])
    heads = int(config["num_attention_heads"])
    found["attention.head_count_kv"] = int(config.get("num_key_value_heads") or heads)
    head_dim = int(config.get("head_dim") or config["hidden_size"] // heads)
    found["attention.key_length"] = found["attention.value_length"] = head_dim
    norm = "rms_epsilon" if family.norm_eps == "rms_norm_eps" else "epsilon"
    found[f"attention.layer_norm_{norm}"] = float(config.get(family.norm_eps) or 1e-5)
    partial = float(config.get("partial_rotary_factor") or 1.0)
    if family.name == "phi2" and config.get("partial_rotary_factor") is None:
        partial = 0.5
    found["rope.dimension_count"] = int(head_dim * partial)
    found["rope.freq_base"] = float(config.get("rope_theta") or 10_000.0)
    if config.get("sliding_window") and config.get("use_sliding_window", True):
        found["attention.sliding_window"] = int(config["sliding_window"])
    for name, key in family.fields.items():
        value = config.get(name)
        if value is not None and key not in found:
            found[key] = value
    experts = config.get("num_experts") or config.get("num_local_experts")
    if experts:
        found["expert_count"] = int(experts)
    found |= _scaling(config)
    if family.architecture == GRANITE:
        found |= granite_keys(config)
    elif family.architecture == DEEPSEEK:
        found |= latent_keys(config)
    return found


def _scaling(config: Mapping[str, Any]) -> dict[str, Any]:
    scaling = config.get("rope_scaling") or {}
    kind = scaling.get("rope_type", "default")
    context = int(config["max_position_embeddings"])
    key = "original_max_position_embeddings"
    original = int(scaling.get(key) or config.get(key) or context)
    p = "rope.scaling."
    match kind:
        case "default" | "llama3":
            return {}
        case "linear":
            return {p + "type": "linear", p + "factor": float(scaling["factor"])}
        case "yarn":
            found = {
                p + "type": "yarn",
                p + "factor": float(scaling["factor"]),
                p + "original_context_length": original,
            }
            for name in ("beta_fast", "beta_slow"):
                if scaling.get(name) is not None:
                    found[f"{p}yarn_{name}"] = float(scaling[name])
            return found
        case "longrope" | "su":
            factor = scaling.get("attention_factor", scaling.get("long_mscale"))
            if factor is None:
                ratio = context / original
                factor = math.sqrt(1 + math.log(ratio) / math.log(original)) if ratio > 1 else 1.0
            return {p + "original_context_length": original, p + "attn_factor": float(factor)}
    raise ConfigError(f"a GGUF file cannot say that rope_scaling is {kind!r}")


def rope_tensors(config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors that state divisors of RoPE frequencies."""
    scaling = config.get("rope_scaling") or {}
    kind = scaling.get("rope_type", "default")
    if kind in ("longrope", "su"):
        return {
            f"rope_factors_{which}.weight": torch.tensor(scaling[f"{which}_factor"])
            for which in ("long", "short")
        }
    if kind != "llama3":
        return {}
    heads = int(config["num_attention_heads"])
    size = int(config.get("head_dim") or config["hidden_size"] // heads)
    theta = float(config.get("rope_theta") or 10_000.0)
    factor, original = float(scaling["factor"]), float(scaling["original_max_position_embeddings"])
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    wavelength = 2 * math.pi * theta ** (torch.arange(0, size, 2, dtype=torch.float64) / size)
    smooth = ((original / wavelength - low) / (high - low)).clamp(0, 1)
    return {"rope_freqs.weight": (1 / ((1 - smooth) / factor + smooth)).float()}
