"""Qwen3, dense.

Paper: Yang et al., arXiv:2505.09388. Reference: ``transformers`` ``models/qwen3``. What differs
from Qwen2: each query and key head is normalized before rotation, the head size is the config's
own, and projections have biases only where the config asks for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from attrs import frozen

from tramontane.nn import (
    ACTIVATIONS,
    CausalLM,
    Decoder,
    GatedMLP,
    PreNormLayer,
    RMSNorm,
    SelfAttention,
    SlidingDecoderConfig,
    attention_heads,
    read,
    read_rope_parameters,
)
from tramontane_qwen.qwen2 import MAX_POSITIONS, windows


@frozen(kw_only=True)
class Qwen3Config(SlidingDecoderConfig):
    """``config.json`` of a Qwen3."""

    max_position_embeddings: int = MAX_POSITIONS
    rms_norm_eps: float = 1e-6
    attention_bias: bool = False

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Qwen3Config:
        return read(
            cls,
            data,
            supported={"hidden_act": ACTIVATIONS, "partial_rotary_factor": (1.0,)},
            rope_parameters=read_rope_parameters(data, default_max_positions=MAX_POSITIONS),
            **windows(data),
            **attention_heads({"head_dim": 128, **data}),
        )


class Qwen3Attention(SelfAttention):
    """Grouped-query attention over normalized queries and keys."""

    def __init__(self, config: Qwen3Config, layer_idx: int) -> None:
        super().__init__(
            config.hidden_size,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            bias=config.attention_bias,
            window=config.window(layer_idx),
            q_norm=RMSNorm(config.head_dim, config.rms_norm_eps),
            k_norm=RMSNorm(config.head_dim, config.rms_norm_eps),
        )


class Qwen3(CausalLM):
    """``Qwen3ForCausalLM``."""

    def __init__(self, config: Qwen3Config) -> None:
        layers = [
            PreNormLayer(
                Qwen3Attention(config, i),
                GatedMLP(config.hidden_size, config.intermediate_size, config.hidden_act),
                RMSNorm(config.hidden_size, config.rms_norm_eps),
                RMSNorm(config.hidden_size, config.rms_norm_eps),
            )
            for i in range(config.num_hidden_layers)
        ]
        norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        super().__init__(config, Decoder(config, layers, norm))

    Config: ClassVar[type[Any]] = Qwen3Config
