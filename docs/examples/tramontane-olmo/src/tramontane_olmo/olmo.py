"""OLMo: Llama whose norms have nothing to learn.

Paper: Groeneveld et al., arXiv:2402.00838. Reference: ``transformers`` ``models/olmo``. What
differs from Llama: LayerNorm without weight or bias in place of RMSNorm.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from attrs import frozen
from torch import nn

from tramontane.nn import (
    ACTIVATIONS,
    CausalLM,
    Decoder,
    DecoderConfig,
    GatedMLP,
    PreNormLayer,
    SelfAttention,
    attention_heads,
    read,
    read_rope_parameters,
)

NORM_EPS = 1e-5


@frozen(kw_only=True)
class OlmoConfig(DecoderConfig):
    """``config.json`` of an OLMo."""

    max_position_embeddings: int = 2048
    attention_bias: bool = False

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> OlmoConfig:
        return read(
            cls,
            data,
            supported={"hidden_act": ACTIVATIONS, "clip_qkv": ()},  # null only: nothing is clipped
            rope_parameters=read_rope_parameters(data, default_max_positions=2048),
            **attention_heads(data),
        )


def _norm(config: OlmoConfig) -> nn.Module:
    return nn.LayerNorm(config.hidden_size, NORM_EPS, elementwise_affine=False)


class OlmoLayer(PreNormLayer):
    """Grouped-query attention and a gated MLP."""

    def __init__(self, config: OlmoConfig) -> None:
        super().__init__(
            SelfAttention(
                config.hidden_size,
                config.num_attention_heads,
                config.num_key_value_heads,
                config.head_dim,
                bias=config.attention_bias,
            ),
            GatedMLP(config.hidden_size, config.intermediate_size, config.hidden_act),
            _norm(config),
            _norm(config),
        )


class Olmo(CausalLM):
    """``OlmoForCausalLM``."""

    def __init__(self, config: OlmoConfig) -> None:
        layers = [OlmoLayer(config) for _ in range(config.num_hidden_layers)]
        super().__init__(config, Decoder(config, layers, _norm(config)))

    Config: ClassVar[type[Any]] = OlmoConfig
