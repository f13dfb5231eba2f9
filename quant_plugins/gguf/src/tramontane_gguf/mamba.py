"""What GGUF keeps otherwise for models with Mamba-2 layers.

Layers without attention have no key-value heads; tensors have the shapes llama.cpp multiplies
with, and the decay rates their exponential taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from tramontane.errors import CheckpointError
from tramontane_gguf.metadata import Metadata

GRANITE = "GraniteMoeHybridForCausalLM"


def granite_settings(
    meta: Metadata, prefix: str, names: Sequence[str], *, num_layers: int
) -> dict[str, Any]:
    """Keys of a GraniteMoeHybrid's ``config.json``.

    Args:
        meta: the file's keys.
        prefix: of the architecture's own, with its dot.
        names: the file's tensors, GGUF names.
        num_layers: layers of the model.

    Raises:
        CheckpointError: a key is absent or of the wrong kind.
    """
    heads = meta.per_layer(prefix + "attention.head_count_kv", num_layers)
    has_rope = meta.flag(prefix + "rope.scaling.finetuned", default=True)
    experts = meta.integer(prefix + "expert_count", 0)
    width = "expert_shared_feed_forward_length" if experts else "feed_forward_length"
    settings: dict[str, Any] = {
        "layer_types": ["attention" if count else "mamba" for count in heads],
        "position_embedding_type": "rope" if has_rope else "nope",
        "num_local_experts": experts,
        "shared_intermediate_size": meta.positive(prefix + width),
    }
    if all(heads):
        return settings
    inner = meta.positive(prefix + "ssm.inner_size")
    num_heads = meta.positive(prefix + "ssm.time_step_rank")
    return settings | {
        "mamba_n_heads": num_heads,
        "mamba_d_head": inner // num_heads,
        "mamba_n_groups": meta.positive(prefix + "ssm.group_count", 1),
        "mamba_d_state": meta.positive(prefix + "ssm.state_size"),
        "mamba_d_conv": meta.positive(prefix + "ssm.conv_kernel"),
        "mamba_expand": inner // meta.positive(prefix + "embedding_length"),
        "mamba_conv_bias": any(name.endswith(".ssm_conv1d.bias") for name in names),
        "mamba_proj_bias": any(name.endswith(".ssm_in.bias") for name in names),
    }


def as_in_hugging_face(role: str, suffix: str, tensor: Tensor, name: str) -> Tensor:
    """A tensor of a Mamba-2 layer with Hugging Face's shape and meaning; others as they are.

    Args:
        role: of the tensor, GGUF's word.
        suffix: ``weight``, ``bias`` or empty.
        name: for errors.

    Raises:
        CheckpointError: rates of decay that are not negative.
    """
    if role == "ssm_a":
        if not bool((tensor < 0).all()):
            raise CheckpointError(f"tensor {name} holds rates of decay that are not negative")
        return tensor.neg().log().flatten()
    if role in ("ssm_d", "ssm_norm"):
        return tensor.flatten()
    if role == "ssm_conv1d" and suffix == "weight":
        return tensor.unsqueeze(1)
    return tensor


# Writing -----------------------------------------------------------------------------------------

_UNROTATED_CONTEXT = 2**20
"""What converters state for a model without positions."""


def granite_family(config: Mapping[str, Any]) -> str:
    """``general.architecture`` of a GraniteMoeHybrid."""
    if not all(_attends(config)):
        return "granitehybrid"
    return "granitemoe" if config.get("num_local_experts") else "granite"


def granite_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a file says of a GraniteMoeHybrid, without the architecture's prefix; the reverse of
    `granite_settings`."""
    attends = _attends(config)
    has_rope = config.get("position_embedding_type") == "rope"
    shared, experts = int(config["shared_intermediate_size"]), config.get("num_local_experts")
    found: dict[str, Any] = {"expert_shared_feed_forward_length": shared}
    if not experts:
        found |= {"feed_forward_length": shared, "expert_count": 0, "expert_used_count": 0}
    if not has_rope or not all(attends):
        found["rope.scaling.finetuned"] = has_rope
    if not has_rope:
        found["context_length"] = _UNROTATED_CONTEXT
    if all(attends):
        return found
    heads = int(config.get("num_key_value_heads") or config["num_attention_heads"])
    return found | {
        "attention.head_count_kv": [heads if there else 0 for there in attends],
        "ssm.conv_kernel": int(config["mamba_d_conv"]),
        "ssm.state_size": int(config["mamba_d_state"]),
        "ssm.group_count": int(config.get("mamba_n_groups") or 1),
        "ssm.inner_size": int(config["mamba_expand"]) * int(config["hidden_size"]),
        "ssm.time_step_rank": int(config["mamba_n_heads"]),
    }


def _attends(config: Mapping[str, Any]) -> list[bool]:
    kinds = config.get("layer_types") or config.get("layers_block_type")
    if kinds is None:
        return [False] * int(config["num_hidden_layers"])
    return [kind in ("attention", "full_attention") for kind in kinds]


def as_in_gguf(name: str, tensor: Tensor, groups: int) -> Tensor:
    """The reverse of `as_in_hugging_face`.

    Args:
        name: of the parameter, within Hugging Face's mixer.
        tensor: its value.
        groups: ``mamba_n_groups``.
    """
    if name == "A_log":
        return tensor.float().exp().neg()[:, None]
    if name == "D":
        return tensor[:, None]
    return tensor.reshape(groups, -1) if name == "norm.weight" else tensor[:, 0]
