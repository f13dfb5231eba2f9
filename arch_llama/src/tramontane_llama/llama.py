"""Llama 1 to 3.x: the decoder that most others are described against.

Papers: Touvron et al., arXiv:2302.13971 (1) and arXiv:2307.09288 (2); "The Llama 3 herd of
models", arXiv:2407.21783. Reference: ``transformers`` ``models/llama``. Pre-norm layers of
grouped-query attention and a SiLU-gated MLP, RMSNorm, rotary positions, no biases unless the
config asks for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from attrs import frozen

from tramontane.nn import (
    ACTIVATIONS,
    CausalLM,
    Decoder,
    DecoderConfig,
    GatedMLP,
    PreNormLayer,
    RMSNorm,
    SelfAttention,
    attention_heads,
    read,
    read_rope_parameters,
)


@frozen(kw_only=True)
class LlamaConfig(DecoderConfig):
    """``config.json`` of a Llama."""

    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    attention_bias: bool = False
    mlp_bias: bool = False

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LlamaConfig:
        return read(
            cls,
            data,
            supported={"hidden_act": ACTIVATIONS, "partial_rotary_factor": (1.0,)},
            rope_parameters=read_rope_parameters(data, default_max_positions=2048),
            **attention_heads(data),
        )


class LlamaLayer(PreNormLayer):
    """Grouped-query attention and a gated MLP."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(
            SelfAttention(
                config.hidden_size,
                config.num_attention_heads,
                config.num_key_value_heads,
                config.head_dim,
                bias=config.attention_bias,
            ),
            GatedMLP(
                config.hidden_size, config.intermediate_size, config.hidden_act, config.mlp_bias
            ),
            RMSNorm(config.hidden_size, config.rms_norm_eps),
            RMSNorm(config.hidden_size, config.rms_norm_eps),
        )


class Llama(CausalLM):
    """``LlamaForCausalLM``."""

    def __init__(self, config: LlamaConfig) -> None:
        layers = [LlamaLayer(config) for _ in range(config.num_hidden_layers)]
        norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        super().__init__(config, Decoder(config, layers, norm))

    Config: ClassVar[type[Any]] = LlamaConfig
