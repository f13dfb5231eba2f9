"""Gemma 3, the language model.

Paper: Gemma Team, arXiv:2503.19786. Reference: ``transformers`` ``models/gemma3``
(``Gemma3TextModel``). What differs from Gemma 2: queries and keys are normalized instead of scores
being bounded, five layers of six see a window, and those rotate with a base of their own, which no
scaling stretches.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from attrs import frozen
from torch import Tensor, nn

from tramontane.nn import (
    FULL_ATTENTION,
    SLIDING_ATTENTION,
    CausalLM,
    RopeParameters,
    Rotary,
    SelfAttention,
    SlidingDecoderConfig,
    attention_heads,
    check_positive,
    check_type,
    read,
    read_layer_types,
    read_rope_parameters,
)
from tramontane.protocols import ForwardBatch, LayerCache
from tramontane_gemma.gemma import HEAD_DIM, SUPPORTED, GemmaDecoder, GemmaRMSNorm
from tramontane_gemma.gemma2 import GemmaSandwichLayer, check_bounds, softcapped

MAX_POSITIONS = 131072


@frozen(kw_only=True)
class Gemma3TextConfig(SlidingDecoderConfig):
    """``config.json`` of a Gemma 3 without vision.

    Attributes:
        rope_parameters: of the layers that see everything.
        local_rope_parameters: of the layers with a window.
        query_pre_attn_scalar: scores are divided by its root.
        final_logit_softcapping: bound of the logits, or None.
    """

    max_position_embeddings: int = MAX_POSITIONS
    rms_norm_eps: float = 1e-6
    hidden_activation: str = "gelu_pytorch_tanh"
    attention_bias: bool = False
    tie_word_embeddings: bool = True
    query_pre_attn_scalar: float = 256
    final_logit_softcapping: float | None = None
    local_rope_parameters: RopeParameters

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        check_positive(self, "query_pre_attn_scalar")
        check_bounds(self, "final_logit_softcapping")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Gemma3TextConfig:
        every = check_type("sliding_window_pattern", data.get("sliding_window_pattern", 6), "int")
        window = data.get("sliding_window", 4096)
        return read(
            cls,
            {**data, "sliding_window": window},
            supported={**SUPPORTED, "attn_logit_softcapping": ()},
            rope_parameters=read_rope_parameters(
                data,
                default_theta=1_000_000.0,
                default_max_positions=MAX_POSITIONS,
                layer_type=FULL_ATTENTION,
            ),
            local_rope_parameters=_local_rope(data),
            # GGUF files of models in which every layer sees everything have no window.
            **read_layer_types(data, lambda i: window is not None and (i + 1) % max(every, 1) != 0),
            **attention_heads({"head_dim": HEAD_DIM, "num_key_value_heads": 4, **data}),
        )


def _local_rope(data: Mapping[str, Any]) -> RopeParameters:
    """RoPE of the windowed layers: parameters of their own, or in older files only a base."""
    given = data.get("rope_parameters") or {}
    local = given.get(SLIDING_ATTENTION) if isinstance(given, Mapping) else None
    if local is None:
        local = {"rope_theta": data.get("rope_local_base_freq") or 10_000.0}
    positions = data.get("max_position_embeddings") or MAX_POSITIONS
    return read_rope_parameters({"max_position_embeddings": positions, "rope_parameters": local})


class Gemma3Decoder(GemmaDecoder):
    """A decoder with two rotations, one for each kind of layer."""

    def __init__(
        self, config: Gemma3TextConfig, layers: Iterable[nn.Module], norm: nn.Module
    ) -> None:
        super().__init__(config, layers, norm)
        self.layer_types = config.layer_types
        self.rotary_local = Rotary(config.local_rope_parameters, config.head_dim)

    def forward(self, batch: ForwardBatch, caches: Sequence[LayerCache]) -> Tensor:
        h = self.embed(batch)
        ropes = {
            FULL_ATTENTION: self.rotary(batch, h.dtype),
            SLIDING_ATTENTION: self.rotary_local(batch, h.dtype),
        }
        for layer, kind, cache in zip(self.layers, self.layer_types, caches, strict=True):
            h = layer(h, ropes[kind], batch, cache)
        out: Tensor = self.norm(h)
        return out


class Gemma3Text(CausalLM):
    """``Gemma3ForCausalLM``."""

    def __init__(self, config: Gemma3TextConfig) -> None:
        layers = [
            GemmaSandwichLayer(
                SelfAttention(
                    config.hidden_size,
                    config.num_attention_heads,
                    config.num_key_value_heads,
                    config.head_dim,
                    bias=config.attention_bias,
                    scale=config.query_pre_attn_scalar**-0.5,
                    window=config.window(i),
                    q_norm=GemmaRMSNorm(config.head_dim, config.rms_norm_eps),
                    k_norm=GemmaRMSNorm(config.head_dim, config.rms_norm_eps),
                ),
                config,
            )
            for i in range(config.num_hidden_layers)
        ]
        norm = GemmaRMSNorm(config.hidden_size, config.rms_norm_eps)
        super().__init__(config, Gemma3Decoder(config, layers, norm))
        self.final_logit_softcapping = config.final_logit_softcapping

    def logits(self, hidden: Tensor) -> Tensor:
        return softcapped(super().logits(hidden), self.final_logit_softcapping)

    Config: ClassVar[type[Any]] = Gemma3TextConfig
