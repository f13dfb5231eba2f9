"""GLM-4-0414 and GLM-Z1.

Paper: Team GLM, arXiv:2406.12793. Reference: ``transformers`` ``models/glm4``. What differs from
Llama: attention and MLP are normalized on their way out as well as in; half of each head is
rotated, and there pairs lie side by side; queries, keys and values usually have biases; gate and
up are stored as one tensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from attrs import frozen
from torch import Tensor, nn

from tramontane.nn import (
    ACTIVATIONS,
    FUSED_GATE_UP,
    AdjacentRope,
    CausalLM,
    Decoder,
    DecoderConfig,
    GatedMLP,
    RMSNorm,
    Rope,
    Rotary,
    SelfAttention,
    attention_heads,
    read,
    read_rope_parameters,
)
from tramontane.protocols import ForwardBatch, LayerCache, WeightRule

MAX_POSITIONS = 131072


@frozen(kw_only=True)
class Glm4Config(DecoderConfig):
    """``config.json`` of a GLM-4."""

    max_position_embeddings: int = MAX_POSITIONS
    rms_norm_eps: float = 1.5625e-7
    attention_bias: bool = True

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Glm4Config:
        return read(
            cls,
            data,
            supported={"hidden_act": ACTIVATIONS},
            rope_parameters=read_rope_parameters(
                {"partial_rotary_factor": 0.5, **data}, default_max_positions=MAX_POSITIONS
            ),
            **attention_heads({"num_key_value_heads": 2, "head_dim": 128, **data}),
        )


class Glm4Layer(nn.Module):
    """Attention, then MLP, each between two norms."""

    def __init__(self, config: Glm4Config) -> None:
        super().__init__()
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.self_attn = SelfAttention(
            hidden,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            bias=config.attention_bias,
            o_bias=False,
        )
        self.mlp = GatedMLP(hidden, config.intermediate_size, config.hidden_act)
        self.input_layernorm = RMSNorm(hidden, eps)
        self.post_self_attn_layernorm = RMSNorm(hidden, eps)
        self.post_attention_layernorm = RMSNorm(hidden, eps)
        self.post_mlp_layernorm = RMSNorm(hidden, eps)

    def forward(
        self, h: Tensor, rope: Rope | None, batch: ForwardBatch, cache: LayerCache
    ) -> Tensor:
        x = self.self_attn(self.input_layernorm(h), rope, batch, cache)  # [T, hidden]
        h = h + self.post_self_attn_layernorm(x)
        x = self.mlp(self.post_attention_layernorm(h))
        out: Tensor = h + self.post_mlp_layernorm(x)
        return out


class Glm4(CausalLM):
    """``Glm4ForCausalLM``."""

    def __init__(self, config: Glm4Config) -> None:
        layers = [Glm4Layer(config) for _ in range(config.num_hidden_layers)]
        norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        rotary = Rotary(config.rope_parameters, config.head_dim, layout=AdjacentRope)
        super().__init__(config, Decoder(config, layers, norm, rotary))

    Config: ClassVar[type[Any]] = Glm4Config
    WEIGHTS: ClassVar[Sequence[WeightRule]] = (*CausalLM.WEIGHTS, FUSED_GATE_UP)
