"""GGUF metadata: typed look-ups, and the ``config.json`` that a file amounts to.

Keys are those of ``docs/gguf.md``; ``{arch}.`` is prefixed to the architecture's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tramontane.errors import CheckpointError
from tramontane_gguf.families import Family

Factors = Callable[[str], list[float] | None]
"""Values of a small tensor of the file by GGUF name, or None when there is no such tensor."""


class Metadata:
    """Typed look-ups over the keys of a file. Every method raises CheckpointError when the key
    holds something else than asked for, or is absent where it must not be."""

    def __init__(self, path: Path, values: Mapping[str, Any]) -> None:
        self.path = path
        self.values = values

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def fail(self, key: str, wanted: str) -> CheckpointError:
        if key not in self.values:
            return CheckpointError(f"{self.path} lacks the metadata key {key} ({wanted})")
        given = self.values[key]
        shown = type(given).__name__ if isinstance(given, (list, np.ndarray)) else repr(given)[:60]
        return CheckpointError(f"{self.path}: metadata key {key} must be {wanted}, not {shown}")

    def text(self, key: str, default: str | None = None) -> str:
        value = self.values.get(key, default)
        if not isinstance(value, str):
            raise self.fail(key, "a string")
        return value

    def flag(self, key: str, *, default: bool) -> bool:
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            raise self.fail(key, "a bool")
        return value

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number; where layers have one each, they must agree."""
        value = self.values.get(key, default)
        if isinstance(value, np.ndarray):
            distinct = {int(item) for item in value} if value.dtype.kind in "iu" else set()
            if len(distinct) != 1:
                raise self.fail(key, "one whole number for all layers")
            value = distinct.pop()
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.fail(key, "a whole number")
        return value

    def positive(self, key: str, default: int | None = None) -> int:
        value = self.integer(key, default)
        if value <= 0:
            raise self.fail(key, "above zero")
        return value

    def per_layer(self, key: str, num_layers: int) -> list[int]:
        """A whole number for each layer, where the file may state one for all."""
        value = self.values.get(key)
        if not isinstance(value, np.ndarray):
            return [self.integer(key)] * num_layers
        if value.dtype.kind not in "iu" or len(value) != num_layers:
            raise self.fail(key, f"a whole number, or {num_layers} of them")
        return [int(item) for item in value]

    def kv_heads(self, prefix: str, default: int) -> int:
        """Key-value heads of the layers that have any; those without attention state 0."""
        key = prefix + "attention.head_count_kv"
        value = self.values.get(key)
        if isinstance(value, np.ndarray) and value.dtype.kind in "iu":
            distinct = {int(item) for item in value if item}
            if len(distinct) != 1:
                raise self.fail(key, "one whole number for all layers with attention")
            return distinct.pop()
        return self.positive(key, default)

    def number(self, key: str, default: float | None = None) -> float:
        value = self.values.get(key, default)
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise self.fail(key, "a number")
        if not math.isfinite(value):
            raise self.fail(key, "finite")
        # f32 in the file: 1e-5 arrives as 9.999999747378752e-06 unless rounded back.
        return value if isinstance(value, int) else float(str(np.float32(value)))

    def texts(self, key: str) -> list[str]:
        value = self.values.get(key)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.fail(key, "an array of strings")
        return value

    def integers(self, key: str) -> list[int]:
        value = self.values.get(key)
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "iu":
            raise self.fail(key, "an array of whole numbers")
        found: list[int] = value.tolist()
        return found

    def numbers(self, key: str) -> list[Any]:
        value = self.values.get(key)
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "iuf":
            raise self.fail(key, "an array of numbers")
        found: list[Any] = value.tolist()
        return found


def config_of(
    meta: Metadata, family: Family, *, names: Sequence[str], vocab_size: int, factors: Factors
) -> dict[str, Any]:
    """``config.json`` content from a file's metadata.

    Args:
        meta: the file's keys.
        family: the row of its architecture.
        names: its tensors, GGUF names; decides what is tied and what has a bias.
        vocab_size: rows of the token embedding.
        factors: reads the rope factor tensors.

    Raises:
        CheckpointError: a required key is absent or of the wrong kind.
    """
    p = f"{family.name}."
    hidden = meta.positive(p + "embedding_length")
    heads = meta.positive(p + "attention.head_count")
    experts = meta.integer(p + "expert_count", 0)
    layers = _num_layers(meta, p, names)
    head_dim = meta.positive(p + "attention.key_length", hidden // heads)
    rotary_dim = meta.integer(p + "rope.dimension_count", head_dim)
    has_bias = any(name.startswith("blk.0.attn_q.bias") for name in names)
    config: dict[str, Any] = {
        "architectures": [(experts and family.moe_architecture) or family.architecture],
        "model_type": (experts and family.moe_model_type) or family.model_type,
        "vocab_size": vocab_size,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": meta.kv_heads(p, heads),
        "head_dim": head_dim,
        "max_position_embeddings": meta.positive(p + "context_length", 4096),
        "rope_theta": _theta(meta, family),
        "rope_scaling": rope_scaling(meta, family, factors),
        "tie_word_embeddings": "output.weight" not in names,
        family.bias: has_bias,
        "mlp_bias": any(name.startswith("blk.0.ffn_up.bias") for name in names),
        "hidden_act": family.hidden_act,
        **family.constants,
    }
    if family.name.startswith("gemma"):
        config["hidden_activation"] = family.hidden_act
    if p + "feed_forward_length" in meta:
        config["intermediate_size"] = meta.integer(p + "feed_forward_length")
    if family.norm_eps == "rms_norm_eps":
        config["rms_norm_eps"] = meta.number(p + "attention.layer_norm_rms_epsilon")
    else:
        rms = p + "attention.layer_norm_rms_epsilon"
        plain = p + "attention.layer_norm_epsilon"
        config[family.norm_eps] = meta.number(rms if rms in meta and plain not in meta else plain)
    if 0 < rotary_dim < head_dim:
        config["partial_rotary_factor"] = rotary_dim / head_dim
    window = meta.integer(p + "attention.sliding_window", family.constants.get("sliding_window", 0))
    config["sliding_window"] = window or None
    for key, source in family.fields.items():
        if p + source in meta and (experts or "expert" not in source):
            value = meta.values[p + source]
            config[key] = value if isinstance(value, (bool, int, str)) else meta.number(p + source)
    if "no_rope_layer_interval" in config:
        interval = config["no_rope_layer_interval"]
        config["no_rope_layers"] = [int((i + 1) % interval != 0) for i in range(layers)]
    if "output.bias" in names:
        config["lm_head_bias"] = True
    if p + "pooling_type" in meta:
        config["pooling_type"] = meta.integer(p + "pooling_type")
    if family.name in _LAYERS_OF_27B:
        large = layers == _LAYERS_OF_27B[family.name]
        config["query_pre_attn_scalar"] = hidden // heads if large else head_dim
    for token in ("bos", "eos"):
        key = f"tokenizer.ggml.{token}_token_id"
        if key in meta and 0 <= meta.integer(key) < vocab_size:
            config[f"{token}_token_id"] = meta.integer(key)
    return config


def _theta(meta: Metadata, family: Family) -> float:
    key = f"{family.name}.rope.freq_base"
    theta = meta.number(key, _THETA.get(family.name, 10_000.0))
    if theta <= 0:
        raise meta.fail(key, "above zero")
    return theta


_FEW_LAYERS = 64
"""So many cost nothing to build; which tensors they lack, the loader says best."""


def _num_layers(meta: Metadata, prefix: str, names: Sequence[str]) -> int:
    """Layers that are run. No more are believed in than there are tensors, of which each has some:
    all are built before the first tensor is looked for."""
    key = prefix + "block_count"
    layers = meta.positive(key) - meta.integer(prefix + "nextn_predict_layers", 0)
    if not 0 < layers <= max(len(names), _FEW_LAYERS):
        raise CheckpointError(
            f"{meta.path}: metadata key {key} makes {layers} layers, which {len(names)} tensors "
            f"cannot fill; it is damaged, or a shard is missing: fetch it again"
        )
    return layers


_THETA = {"starcoder2": 100_000.0}
_LAYERS_OF_27B = {"gemma2": 46, "gemma3": 62}
"""What llama.cpp too goes by: in the largest models scores are scaled by the width shared out over
the heads, in the others by the head size. The file does not say it."""


def rope_scaling(meta: Metadata, family: Family, factors: Factors) -> dict[str, Any] | None:
    """``rope_scaling`` as Hugging Face writes it, or None.

    Raises:
        CheckpointError: a scaling type that GGUF does not define.
    """
    p = f"{family.name}.rope.scaling."
    kind = meta.text(p + "type", "none")
    context = meta.positive(f"{family.name}.context_length", 4096)
    original = meta.positive(p + "original_context_length", context)
    long, short = factors("rope_factors_long.weight"), factors("rope_factors_short.weight")
    if long is not None and short is not None:
        scaling: dict[str, Any] = {
            "rope_type": "longrope",
            "long_factor": long,
            "short_factor": short,
            "factor": context / original,
            "original_max_position_embeddings": original,
        }
        if p + "attn_factor" in meta:
            scaling["attention_factor"] = meta.number(p + "attn_factor")
        return scaling
    freqs = factors("rope_freqs.weight")
    if freqs is not None and any(factor != 1.0 for factor in freqs):
        return _llama3(meta, family, freqs) or {
            # Any per-frequency divisors are a LongRoPE whose two lists agree and whose
            # attention is not rescaled.
            "rope_type": "longrope",
            "long_factor": freqs,
            "short_factor": freqs,
            "factor": 1.0,
            "attention_factor": 1.0,
            "original_max_position_embeddings": original,
        }
    if kind == "none":
        # Files from before scaling had a type only have the linear factor.
        if f"{family.name}.rope.scale_linear" in meta:
            factor = meta.number(f"{family.name}.rope.scale_linear")
            return {"rope_type": "linear", "factor": factor} if factor != 1.0 else None
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": meta.number(p + "factor")}
    if kind == "yarn":
        scaling = {
            "rope_type": "yarn",
            "factor": meta.number(p + "factor"),
            "original_max_position_embeddings": original,
            **family.rope_constants,
        }
        for key in ("beta_fast", "beta_slow"):
            if p + f"yarn_{key}" in meta:
                scaling[key] = meta.number(p + f"yarn_{key}")
        if p + "yarn_log_multiplier" in meta:
            # The converter writes a tenth of mscale_all_dim, which DeepSeek sets equal to mscale.
            scale = meta.number(p + "yarn_log_multiplier") * 10
            scaling |= {"mscale": scale, "mscale_all_dim": scale}
        return scaling
    raise meta.fail(p + "type", "none, linear or yarn, or longrope with its factor tensors")


def _llama3(meta: Metadata, family: Family, freqs: list[float]) -> dict[str, Any] | None:
    """The Llama 3 parameters that give these divisors, or None when those of Meta's models do not.

    Llama 3.1 scales by 8, Llama 3.2 by 32; both with the other three as below.
    """
    low, high, original = 1.0, 4.0, 8192
    factor = max(freqs)
    theta = _theta(meta, family)
    for i, given in enumerate(freqs):
        wavelength = 2 * math.pi * theta ** (i / len(freqs))
        smooth = (original / wavelength - low) / (high - low)
        smooth = min(max(smooth, 0.0), 1.0)
        if not math.isclose(given, 1 / ((1 - smooth) / factor + smooth), rel_tol=1e-4):
            return None
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }
