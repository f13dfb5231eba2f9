"""What GGUF keeps otherwise for models with Mamba-2 layers.

Layers without attention have no key-value heads; tensors have the shapes llama.cpp multiplies
with, and the decay rates their exponential taken.
"""

from __future__ import annotations

from collections.abc import Sequence
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
