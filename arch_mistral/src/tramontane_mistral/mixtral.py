"""Mixtral: Mistral whose MLP is a mixture of experts.

Paper: Jiang et al., arXiv:2401.04088. Reference: ``transformers`` ``models/mixtral``. What differs
from Mistral: each token goes through the two (``num_experts_per_tok``) experts its router ranks
highest, their softmax weights scaled to sum to one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from attrs import frozen
from torch import Tensor, nn

from tramontane.errors import ConfigError
from tramontane.nn import (
    ACTIVATIONS,
    GatedExperts,
    MoE,
    RMSNorm,
    Rope,
    SelfAttention,
    attention_heads,
    check_positive,
    read,
    read_rope_parameters,
    softmax_top_k,
)
from tramontane.protocols import ForwardBatch, LayerCache, Rename, Split, Stack, WeightRule
from tramontane_mistral.mistral import Mistral, MistralConfig


@frozen(kw_only=True)
class MixtralConfig(MistralConfig):
    """``config.json`` of a Mixtral."""

    rms_norm_eps: float = 1e-5
    num_local_experts: int = 8
    num_experts_per_tok: int = 2

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        check_positive(self, "num_local_experts", "num_experts_per_tok")
        if self.num_experts_per_tok > self.num_local_experts:
            raise ConfigError(
                f"num_experts_per_tok is {self.num_experts_per_tok}, but num_local_experts only "
                f"{self.num_local_experts}"
            )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> MixtralConfig:
        return read(
            cls,
            data,
            supported={"hidden_act": ACTIVATIONS, "partial_rotary_factor": (1.0,)},
            rope_parameters=read_rope_parameters(
                data, default_theta=1_000_000.0, default_max_positions=131072
            ),
            **attention_heads({"num_key_value_heads": 8, **data}),
        )


class MixtralLayer(nn.Module):
    """Attention, then experts, each on a normalized copy of the residual stream."""

    def __init__(self, config: MixtralConfig) -> None:
        super().__init__()
        self.self_attn = SelfAttention(
            config.hidden_size,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            window=config.sliding_window,
        )
        experts = GatedExperts(
            config.num_local_experts,
            config.hidden_size,
            config.intermediate_size,
            config.hidden_act,
        )
        self.mlp = MoE(
            config.hidden_size,
            experts,
            config.num_local_experts,
            softmax_top_k(config.num_experts_per_tok),
        )
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, h: Tensor, rope: Rope, batch: ForwardBatch, cache: LayerCache) -> Tensor:
        h = h + self.self_attn(self.input_layernorm(h), rope, batch, cache)  # [T, hidden]
        out: Tensor = h + self.mlp(self.post_attention_layernorm(h))
        return out


class Mixtral(Mistral):
    """``MixtralForCausalLM``."""

    Layer = MixtralLayer

    Config: ClassVar[type[Any]] = MixtralConfig
    # Published files store expert by expert under the names of the first release (GGUF: one stack
    # a projection); transformers 5 can also write its own stacked parameters, gate above up.
    WEIGHTS: ClassVar[Sequence[WeightRule]] = (
        *Mistral.WEIGHTS,
        Rename(r"(.*)\.block_sparse_moe\.(.*)", r"\1.mlp.\2"),
        Rename(r"(.*\.mlp\.experts\.(?:\d+\.)?)w1\.weight", r"\1gate_proj.weight"),
        Rename(r"(.*\.mlp\.experts\.(?:\d+\.)?)w2\.weight", r"\1down_proj.weight"),
        Rename(r"(.*\.mlp\.experts\.(?:\d+\.)?)w3\.weight", r"\1up_proj.weight"),
        Stack(r"(.*\.mlp\.experts)\.(\d+)\.gate_proj\.weight", r"\1.gate_proj.weight"),
        Stack(r"(.*\.mlp\.experts)\.(\d+)\.down_proj\.weight", r"\1.down_proj.weight"),
        Stack(r"(.*\.mlp\.experts)\.(\d+)\.up_proj\.weight", r"\1.up_proj.weight"),
        Rename(r"(.*\.mlp\.experts\.down_proj)", r"\1.weight"),
        Split(
            r"(.*\.mlp\.experts)\.gate_up_proj",
            (r"\1.gate_proj.weight", r"\1.up_proj.weight"),
            ("intermediate_size", "intermediate_size"),
            axis=1,
        ),
    )
    PARALLEL_PLAN: ClassVar[Mapping[str, str]] = {
        **{k: v for k, v in Mistral.PARALLEL_PLAN.items() if ".mlp." not in k},
        "model.layers.*.mlp.experts.gate_proj": "column",
        "model.layers.*.mlp.experts.up_proj": "column",
        "model.layers.*.mlp.experts.down_proj": "row",
    }
