"""What llama.cpp's converter makes of DeepSeek V2 and V3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

_SOFTMAX, _SIGMOID = 1, 2
_BIAS = "e_score_correction_bias"


def deepseek_settings(config: Mapping[str, Any], *, halves: bool) -> dict[str, Any]:
    """Metadata without the architecture's prefix.

    Args:
        config: content of ``config.json``.
        halves: as `deepseek_tensors` has it.
    """
    key_length = config["qk_nope_head_dim"] + config["qk_rope_head_dim"]
    found: dict[str, Any] = {
        "attention.kv_lora_rank": config["kv_lora_rank"],
        "rope.dimension_count": config["qk_rope_head_dim"],
        "leading_dense_block_count": config["first_k_dense_replace"],
        "vocab_size": config["vocab_size"],
        "expert_count": config["n_routed_experts"],
        "expert_shared_count": config["n_shared_experts"],
        "expert_weights_scale": float(config["routed_scaling_factor"]),
        "expert_weights_norm": bool(config["norm_topk_prob"]),
    }
    if halves:
        # Attention over the latents has one key-value head, as wide as what is cached.
        found |= {
            "attention.head_count_kv": 1,
            "attention.key_length": config["kv_lora_rank"] + config["qk_rope_head_dim"],
            "attention.value_length": config["kv_lora_rank"],
            "attention.key_length_mla": key_length,
            "attention.value_length_mla": config["v_head_dim"],
            "expert_gating_func": _SIGMOID if _sigmoid(config) else _SOFTMAX,
        }
    else:
        found |= {
            "attention.key_length": key_length,
            "attention.value_length": config["v_head_dim"],
        }
        if _sigmoid(config):
            found["expert_gating_func"] = _SIGMOID
    if config["q_lora_rank"] is not None:
        found["attention.q_lora_rank"] = config["q_lora_rank"]
    if config["n_group"] is not None:
        found["expert_group_count"] = config["n_group"]
        found["expert_group_used_count"] = config["topk_group"]
    mscale = config["rope_parameters"].get("mscale_all_dim")
    if mscale:
        found["rope.scaling.yarn_log_multiplier"] = 0.1 * mscale
    return found


def deepseek_tensors(
    tensors: Mapping[str, np.ndarray], config: Mapping[str, Any], *, halves: bool
) -> dict[str, np.ndarray]:
    """Tensors under names of which the gguf package knows the modules.

    Args:
        tensors: those of Hugging Face.
        config: content of ``config.json``.
        halves: whether ``kv_b_proj`` is written in two, as converters do since 2025-04.
    """
    heads, nope = config["num_attention_heads"], config["qk_nope_head_dim"]
    result: dict[str, np.ndarray] = {}
    for name, array in tensors.items():
        if name.endswith(_BIAS):
            result[name.replace(_BIAS, "e_score_correction.bias")] = array
        elif halves and name.endswith("kv_b_proj.weight"):
            by_head = array.reshape(heads, -1, array.shape[-1])
            k, v = by_head[:, :nope], by_head[:, nope:]
            result[name.replace("kv_b", "k_b")] = np.ascontiguousarray(k.transpose(0, 2, 1))
            result[name.replace("kv_b", "v_b")] = np.ascontiguousarray(v)
        else:
            result[name] = array
    return result


def _sigmoid(config: Mapping[str, Any]) -> bool:
    return bool(config["model_type"] == "deepseek_v3")
