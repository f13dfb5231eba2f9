"""What llama.cpp's converter makes of Granite 4: multipliers, Mamba-2 layers, a shared MLP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

_SCALES = {
    "attention_multiplier": "attention.scale",
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale",
}
_UNROTATED_CONTEXT = 2**20
"""What the converter states for a model without positions."""


def granite_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata without the architecture's prefix."""
    found: dict[str, Any] = {key: float(config[name]) for name, key in _SCALES.items()}
    found["expert_shared_feed_forward_length"] = config["shared_intermediate_size"]
    attends = [kind == "full_attention" for kind in config["layer_types"]]
    if all(attends):
        return found
    has_rope = config["position_embedding_type"] == "rope"
    found["rope.scaling.finetuned"] = has_rope
    if not has_rope:
        found["context_length"] = _UNROTATED_CONTEXT
    heads = config["num_key_value_heads"]
    return found | {
        "attention.head_count_kv": [heads if there else 0 for there in attends],
        "ssm.conv_kernel": config["mamba_d_conv"],
        "ssm.state_size": config["mamba_d_state"],
        "ssm.group_count": config["mamba_n_groups"],
        "ssm.inner_size": config["mamba_expand"] * config["hidden_size"],
        "ssm.time_step_rank": config["mamba_n_heads"],
    }


def granite_tensors(
    tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Fused projections apart and Mamba-2 tensors reshaped, under names of which the gguf package
    knows the modules; those that end with a dot have no suffix."""
    groups = config["mamba_n_groups"]
    shared = "mlp.shared_experts" if config["num_local_experts"] else "mlp"
    result: dict[str, np.ndarray] = {}
    for name, array in tensors.items():
        stem, _, leaf = name.rpartition(".")
        if name.endswith("input_linear.weight"):
            axis = array.ndim - 2
            owner = stem.removesuffix(".input_linear")
            owner = owner.replace("block_sparse_moe", "mlp.experts").replace("shared_mlp", shared)
            gate, up = np.split(array, 2, axis)
            result[f"{owner}.gate_proj.weight"] = np.ascontiguousarray(gate)
            result[f"{owner}.up_proj.weight"] = np.ascontiguousarray(up)
        elif name.endswith("shared_mlp.output_linear.weight"):
            result[name.replace("shared_mlp.output_linear", f"{shared}.down_proj")] = array
        elif leaf == "A_log":
            result[f"{name}."] = -np.exp(array)[:, None]
        elif leaf == "D":
            result[f"{name}."] = array[:, None]
        elif leaf == "dt_bias":
            result[f"{stem}.dt_proj.bias"] = array
        elif name.endswith("mamba.norm.weight"):
            result[name] = array.reshape(groups, -1)
        elif name.endswith("conv1d.weight"):
            result[name] = array[:, 0]
        else:
            result[name] = array
    return result
