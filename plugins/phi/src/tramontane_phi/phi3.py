"""Phi 3, 3.5 and 4, mini models included.

Paper: Abdin et al., arXiv:2404.14219; Phi-4-mini, arXiv:2503.01743. Reference: ``transformers``
``models/phi3``. What differs from Llama: q, k and v are stored as one tensor, gate and up as
another; a window, where there is one, holds for all layers; long contexts rotate by LongRoPE
(arXiv:2402.13753), in newer models only a part of each head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from attrs import frozen

from tramontane.errors import ConfigError
from tramontane.nn import (
    ACTIVATIONS,
    FUSED_GATE_UP,
    CausalLM,
    Decoder,
    DecoderConfig,
    GatedMLP,
    PreNormLayer,
    RMSNorm,
    SelfAttention,
    attention_heads,
    check_positive,
    read,
    read_rope_parameters,
)
from tramontane.protocols import Split, WeightRule

MAX_POSITIONS = 4096


@frozen(kw_only=True)
class Phi3Config(DecoderConfig):
    """``config.json`` of a Phi 3.

    Attributes:
        sliding_window: tokens each token sees, itself among them; None for all.
    """

    max_position_embeddings: int = MAX_POSITIONS
    rms_norm_eps: float = 1e-5
    sliding_window: int | None = None

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.sliding_window is not None:
            check_positive(self, "sliding_window")
        check_rope_type(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Phi3Config:
        return read(
            cls,
            data,
            supported={"hidden_act": ACTIVATIONS},
            rope_parameters=read_rope_parameters(data, default_max_positions=MAX_POSITIONS),
            **attention_heads(data),
        )

    def window(self, layer_idx: int) -> int | None:
        return self.sliding_window

    @property
    def q_size(self) -> int:
        """Rows of ``qkv_proj`` that are queries."""
        return self.num_attention_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Rows of it that are keys, and as many that are values."""
        return self.num_key_value_heads * self.head_dim


def check_rope_type(config: DecoderConfig) -> None:
    """Refuse a scaling that no Phi has.

    Raises:
        ConfigError: naming it.
    """
    kind = config.rope_parameters.rope_type
    if kind not in ("default", "longrope"):
        raise ConfigError(f"rope_parameters.rope_type is {kind!r}; Phi 3 has default and longrope")


class Phi3(CausalLM):
    """``Phi3ForCausalLM``."""

    def __init__(self, config: Phi3Config) -> None:
        layers = [
            PreNormLayer(
                SelfAttention(
                    config.hidden_size,
                    config.num_attention_heads,
                    config.num_key_value_heads,
                    config.head_dim,
                    window=config.sliding_window,
                ),
                GatedMLP(config.hidden_size, config.intermediate_size, config.hidden_act),
                RMSNorm(config.hidden_size, config.rms_norm_eps),
                RMSNorm(config.hidden_size, config.rms_norm_eps),
            )
            for _ in range(config.num_hidden_layers)
        ]
        norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        super().__init__(config, Decoder(config, layers, norm))

    Config: ClassVar[type[Any]] = Phi3Config
    WEIGHTS: ClassVar[Sequence[WeightRule]] = (
        *CausalLM.WEIGHTS,
        Split(
            r"(.*\.self_attn)\.qkv_proj\.weight",
            (r"\1.q_proj.weight", r"\1.k_proj.weight", r"\1.v_proj.weight"),
            ("q_size", "kv_size", "kv_size"),
        ),
        FUSED_GATE_UP,
    )
