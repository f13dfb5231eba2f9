"""Gemma 2.

Paper: Gemma Team, arXiv:2408.00118. Reference: ``transformers`` ``models/gemma2``. What differs
from Gemma: attention and MLP are normalized on their way out as well as in, scores and logits are
bounded by a soft cap, the scale of the scores is the config's own, and every second layer sees a
window only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from attrs import frozen
from torch import Tensor, nn

from tramontane.errors import ConfigError
from tramontane.nn import (
    CausalLM,
    GatedMLP,
    Rope,
    SelfAttention,
    SlidingDecoderConfig,
    attention_heads,
    check_positive,
    read,
    read_layer_types,
    read_rope_parameters,
)
from tramontane.protocols import ForwardBatch, LayerCache
from tramontane_gemma.gemma import (
    HEAD_DIM,
    MAX_POSITIONS,
    SUPPORTED,
    GemmaDecoder,
    GemmaRMSNorm,
)


@frozen(kw_only=True)
class Gemma2Config(SlidingDecoderConfig):
    """``config.json`` of a Gemma 2.

    Attributes:
        query_pre_attn_scalar: scores are divided by its root.
        attn_logit_softcapping: bound of the scores, or None.
        final_logit_softcapping: bound of the logits, or None.
    """

    max_position_embeddings: int = MAX_POSITIONS
    rms_norm_eps: float = 1e-6
    hidden_activation: str = "gelu_pytorch_tanh"
    attention_bias: bool = False
    tie_word_embeddings: bool = True
    query_pre_attn_scalar: float = 256
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        check_positive(self, "query_pre_attn_scalar")
        check_bounds(self, "attn_logit_softcapping", "final_logit_softcapping")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Gemma2Config:
        return read(
            cls,
            {
                "sliding_window": 4096,
                "attn_logit_softcapping": 50.0,
                "final_logit_softcapping": 30.0,
                **data,
            },
            supported=SUPPORTED,
            rope_parameters=read_rope_parameters(data, default_max_positions=MAX_POSITIONS),
            **read_layer_types(data, lambda i: i % 2 == 0),
            **attention_heads({"head_dim": HEAD_DIM, "num_key_value_heads": 4, **data}),
        )


def check_bounds(config: object, *names: str) -> None:
    """Refuse a soft cap that is not above zero.

    Raises:
        ConfigError: naming the key and the value.
    """
    for name in names:
        value = getattr(config, name)
        if value is not None and value <= 0:
            raise ConfigError(f"{name} is {value}; a bound is above 0, or null for none")


class GemmaSandwichLayer(nn.Module):
    """Attention, then MLP, each between two norms.

    Args:
        self_attn: the attention of the layer.
        config: widths and activation of the rest.
    """

    def __init__(self, self_attn: SelfAttention, config: Any) -> None:
        super().__init__()
        self.self_attn = self_attn
        self.mlp = GatedMLP(config.hidden_size, config.intermediate_size, config.hidden_activation)
        self.input_layernorm = GemmaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = GemmaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.pre_feedforward_layernorm = GemmaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_feedforward_layernorm = GemmaRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, h: Tensor, rope: Rope | None, batch: ForwardBatch, cache: LayerCache
    ) -> Tensor:
        x = self.self_attn(self.input_layernorm(h), rope, batch, cache)  # [T, hidden]
        h = h + self.post_attention_layernorm(x)
        x = self.mlp(self.pre_feedforward_layernorm(h))
        out: Tensor = h + self.post_feedforward_layernorm(x)
        return out


def softcapped(logits: Tensor, bound: float | None) -> Tensor:
    """``bound * tanh(logits / bound)``; the logits themselves where there is no bound."""
    return logits if bound is None else torch.tanh(logits / bound) * bound


class Gemma2(CausalLM):
    """``Gemma2ForCausalLM``."""

    def __init__(self, config: Gemma2Config) -> None:
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
                    softcap=config.attn_logit_softcapping,
                ),
                config,
            )
            for i in range(config.num_hidden_layers)
        ]
        norm = GemmaRMSNorm(config.hidden_size, config.rms_norm_eps)
        super().__init__(config, GemmaDecoder(config, layers, norm))
        self.final_logit_softcapping = config.final_logit_softcapping

    def logits(self, hidden: Tensor) -> Tensor:
        return softcapped(super().logits(hidden), self.final_logit_softcapping)

    Config: ClassVar[type[Any]] = Gemma2Config
