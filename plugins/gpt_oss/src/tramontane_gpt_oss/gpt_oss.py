"""gpt-oss.

Paper: OpenAI, "gpt-oss-120b & gpt-oss-20b Model Card", arXiv:2508.10925. Reference:
``transformers`` ``models/gpt_oss``. What differs from Llama: every second layer, from the first,
sees a window; each head has a learned logit that takes attention away (a sink); all projections
have biases; and the MLP is a mixture of experts whose gate is bounded and whose up branch is
shifted by one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from attrs import frozen
from torch import nn

from tramontane.errors import ConfigError
from tramontane.nn import (
    BoundedGate,
    CausalLM,
    Decoder,
    GatedExperts,
    MoE,
    PreNormLayer,
    RMSNorm,
    RopeParameters,
    SelfAttention,
    SlidingDecoderConfig,
    SoftmaxTopK,
    attention_heads,
    check_experts,
    check_positive,
    read,
    read_layer_types,
    read_rope_parameters,
)
from tramontane.protocols import Rename, Split, Transpose, WeightRule

MAX_POSITIONS = 131072
_YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
"""Of both published models, for files that say nothing about RoPE scaling."""


@frozen(kw_only=True)
class GptOssConfig(SlidingDecoderConfig):
    """``config.json`` of a gpt-oss.

    Attributes:
        intermediate_size: width of one expert.
        swiglu_limit: bound of the gate from above, and of the up branch on both sides.
        swiglu_alpha: factor within the gate's sigmoid.
    """

    max_position_embeddings: int = MAX_POSITIONS
    rms_norm_eps: float = 1e-5
    attention_bias: bool = True
    num_local_experts: int = 128
    num_experts_per_tok: int = 4
    swiglu_limit: float = 7.0
    swiglu_alpha: float = 1.702

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        check_positive(self, "num_local_experts")
        check_experts(self, "num_local_experts")
        if self.swiglu_limit <= 0:
            raise ConfigError(f"swiglu_limit is {self.swiglu_limit}; a bound is above zero")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> GptOssConfig:
        window = data.get("sliding_window", 128)
        return read(
            cls,
            {**data, "sliding_window": window},
            supported={"hidden_act": ("silu",), "partial_rotary_factor": (1.0,)},
            rope_parameters=_rope(data),
            **read_layer_types(data, lambda i: i % 2 == 0),
            **attention_heads({"head_dim": 64, "num_key_value_heads": 8, **data}),
        )


def _rope(data: Mapping[str, Any]) -> RopeParameters:
    given = {"rope_scaling": _YARN, **data}
    if "rope_parameters" in data:
        del given["rope_scaling"]
    return read_rope_parameters(given, default_theta=150_000.0, default_max_positions=MAX_POSITIONS)


def _layer(config: GptOssConfig, layer_idx: int) -> nn.Module:
    hidden, eps = config.hidden_size, config.rms_norm_eps
    gate = BoundedGate(config.swiglu_limit, config.swiglu_alpha)
    experts = GatedExperts(
        config.num_local_experts, hidden, config.intermediate_size, gate, bias=True
    )
    return PreNormLayer(
        SelfAttention(
            hidden,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            bias=config.attention_bias,
            window=config.window(layer_idx),
            sinks=True,
        ),
        MoE(
            hidden,
            experts,
            config.num_local_experts,
            # A softmax over the chosen logits alone is one over all of them, renormalized.
            SoftmaxTopK(config.num_experts_per_tok),
            gate_bias=True,
        ),
        RMSNorm(hidden, eps),
        RMSNorm(hidden, eps),
    )


class GptOss(CausalLM):
    """``GptOssForCausalLM``."""

    def __init__(self, config: GptOssConfig) -> None:
        layers = [_layer(config, i) for i in range(config.num_hidden_layers)]
        norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        super().__init__(config, Decoder(config, layers, norm))

    Config: ClassVar[type[Any]] = GptOssConfig
    WEIGHTS: ClassVar[Sequence[WeightRule]] = (
        *CausalLM.WEIGHTS,
        Rename(r"(.*\.mlp)\.router\.(weight|bias)", r"\1.gate.\2"),
        # Stacks lie as [experts, in, out], where gate and up take turns along the last axis.
        Transpose(r"(.*\.experts\.(?:gate_up|down)_proj)", r"\1.weight"),
        Rename(r"(.*\.experts\.(?:gate_up|down)_proj)_bias", r"\1.bias"),
        Split(
            r"(.*\.experts)\.gate_up_proj\.(weight|bias)",
            (r"\1.gate_proj.\2", r"\1.up_proj.\2"),
            ("intermediate_size", "intermediate_size"),
            axis=1,
            interleaved=True,
        ),
    )
