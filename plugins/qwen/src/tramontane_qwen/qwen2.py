"""Qwen2 and Qwen2.5.

Paper: Yang et al., arXiv:2407.10671; Qwen2.5, arXiv:2412.15115. Reference: ``transformers``
``models/qwen2``. What differs from Llama: query, key and value projections have biases, and a
config may give the layers from ``max_window_layers`` on a sliding window.
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
    check_type,
    read,
    read_layer_types,
    read_rope_parameters,
)

MAX_POSITIONS = 32768


@frozen(kw_only=True)
class Qwen2Config(SlidingDecoderConfig):
    """``config.json`` of a Qwen2."""

    max_position_embeddings: int = MAX_POSITIONS
    rms_norm_eps: float = 1e-6

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Qwen2Config:
        return read(
            cls,
            data,
            supported={"hidden_act": ACTIVATIONS, "partial_rotary_factor": (1.0,)},
            rope_parameters=read_rope_parameters(data, default_max_positions=MAX_POSITIONS),
            **windows(data),
            **attention_heads(data),
        )


def windows(data: Mapping[str, Any]) -> dict[str, Any]:
    """``sliding_window`` and ``layer_types``, for `read`. The window counts only where
    ``use_sliding_window`` is true; layers from ``max_window_layers`` on then have it."""
    window = data.get("sliding_window", 4096) if data.get("use_sliding_window") else None
    first = check_type("max_window_layers", data.get("max_window_layers", 28), "int")
    types = read_layer_types(data, lambda i: window is not None and i >= first)
    return {"sliding_window": window, **types}


class Qwen2Layer(PreNormLayer):
    """Grouped-query attention with biases, and a gated MLP."""

    def __init__(self, config: Qwen2Config, layer_idx: int) -> None:
        super().__init__(
            SelfAttention(
                config.hidden_size,
                config.num_attention_heads,
                config.num_key_value_heads,
                config.head_dim,
                bias=True,
                o_bias=False,
                window=config.window(layer_idx),
            ),
            GatedMLP(config.hidden_size, config.intermediate_size, config.hidden_act),
            RMSNorm(config.hidden_size, config.rms_norm_eps),
            RMSNorm(config.hidden_size, config.rms_norm_eps),
        )


class Qwen2(CausalLM):
    """``Qwen2ForCausalLM``."""

    def __init__(self, config: Qwen2Config) -> None:
        layers = [Qwen2Layer(config, i) for i in range(config.num_hidden_layers)]
        norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        super().__init__(config, Decoder(config, layers, norm))

    Config: ClassVar[type[Any]] = Qwen2Config
