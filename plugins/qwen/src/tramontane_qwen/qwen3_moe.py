"""Qwen3-MoE.

Paper: Yang et al., arXiv:2505.09388. Reference: ``transformers`` ``models/qwen3_moe``. What
differs from Qwen3: the MLP of most layers is a mixture of experts, and a window, where there is
one, holds for all layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from attrs import frozen
from torch import nn

from tramontane.nn import (
    ACTIVATIONS,
    CausalLM,
    Decoder,
    GatedExperts,
    GatedMLP,
    MoE,
    PreNormLayer,
    RMSNorm,
    SoftmaxTopK,
    attention_heads,
    check_experts,
    check_positive,
    expert_weights,
    read,
    read_layer_types,
    read_rope_parameters,
)
from tramontane.protocols import WeightRule
from tramontane_qwen.qwen2 import MAX_POSITIONS, windows
from tramontane_qwen.qwen3 import Qwen3Attention, Qwen3Config


@frozen(kw_only=True)
class Qwen3MoeConfig(Qwen3Config):
    """``config.json`` of a Qwen3-MoE.

    Attributes:
        intermediate_size: width of the MLP in layers without experts.
        moe_intermediate_size: width of one expert.
        norm_topk_prob: whether the weights of a token's experts are scaled to sum to one.
        decoder_sparse_step: every which layer has experts.
        mlp_only_layers: indices of layers that have none whatever the step says.
    """

    num_experts: int = 128
    num_experts_per_tok: int = 8
    moe_intermediate_size: int = 768
    norm_topk_prob: bool = False
    decoder_sparse_step: int = 1
    mlp_only_layers: tuple[int, ...] = ()

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        check_positive(self, "num_experts_per_tok", "moe_intermediate_size", "decoder_sparse_step")
        check_experts(self, "num_experts")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Qwen3MoeConfig:
        window = windows(data)["sliding_window"]
        types = read_layer_types({**data, "layer_types": None}, lambda i: window is not None)
        # transformers 5 calls the number of experts num_local_experts when it writes the file.
        experts = data.get("num_local_experts") or data.get("num_experts")
        return read(
            cls,
            {**data, "num_experts": experts},
            supported={"hidden_act": ACTIVATIONS, "partial_rotary_factor": (1.0,)},
            rope_parameters=read_rope_parameters(data, default_max_positions=MAX_POSITIONS),
            sliding_window=window,
            **types,
            **attention_heads({"num_key_value_heads": 4, **data}),
        )

    def has_experts(self, layer_idx: int) -> bool:
        if layer_idx in self.mlp_only_layers or self.num_experts == 0:
            return False
        return (layer_idx + 1) % self.decoder_sparse_step == 0


def _mlp(config: Qwen3MoeConfig, layer_idx: int) -> nn.Module:
    hidden = config.hidden_size
    if not config.has_experts(layer_idx):
        return GatedMLP(hidden, config.intermediate_size, config.hidden_act)
    experts = GatedExperts(
        config.num_experts, hidden, config.moe_intermediate_size, config.hidden_act
    )
    route = SoftmaxTopK(config.num_experts_per_tok, renormalize=config.norm_topk_prob)
    return MoE(hidden, experts, config.num_experts, route)


class Qwen3Moe(CausalLM):
    """``Qwen3MoeForCausalLM``."""

    def __init__(self, config: Qwen3MoeConfig) -> None:
        layers = [
            PreNormLayer(
                Qwen3Attention(config, i),
                _mlp(config, i),
                RMSNorm(config.hidden_size, config.rms_norm_eps),
                RMSNorm(config.hidden_size, config.rms_norm_eps),
            )
            for i in range(config.num_hidden_layers)
        ]
        norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        super().__init__(config, Decoder(config, layers, norm))

    Config: ClassVar[type[Any]] = Qwen3MoeConfig
    WEIGHTS: ClassVar[Sequence[WeightRule]] = (
        *CausalLM.WEIGHTS,
        *expert_weights("moe_intermediate_size"),
    )
