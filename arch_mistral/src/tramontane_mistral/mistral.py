"""Mistral 7B and its kin.

Paper: Jiang et al., arXiv:2310.06825. Reference: ``transformers`` ``models/mistral``. What
differs from Llama: every layer may have a sliding window (version 0.1 has, later ones have not),
no projection has a bias, and the head size may differ from the width shared out over the heads
(Mistral Nemo).
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
    check_positive,
    read,
    read_rope_parameters,
)


@frozen(kw_only=True)
class MistralConfig(DecoderConfig):
    """``config.json`` of a Mistral.

    Attributes:
        sliding_window: tokens each token sees, itself among them; None for all. A file that does
            not mention it means 4096, as in transformers; null means None.
    """

    max_position_embeddings: int = 131072
    rms_norm_eps: float = 1e-6
    sliding_window: int | None = None

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.sliding_window is not None:
            check_positive(self, "sliding_window")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> MistralConfig:
        return read(
            cls,
            {"sliding_window": 4096, **data},
            supported={"hidden_act": ACTIVATIONS, "partial_rotary_factor": (1.0,)},
            rope_parameters=read_rope_parameters(data, default_max_positions=131072),
            **attention_heads({"num_key_value_heads": 8, **data}),
        )

    def window(self, layer_idx: int) -> int | None:
        return self.sliding_window


class MistralAttention(SelfAttention):
    """Grouped-query attention, perhaps within a window."""

    def __init__(self, config: MistralConfig) -> None:
        super().__init__(
            config.hidden_size,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            window=config.sliding_window,
        )


class Mistral(CausalLM):
    """``MistralForCausalLM``."""

    def __init__(self, config: MistralConfig) -> None:
        layers = [
            PreNormLayer(
                MistralAttention(config),
                GatedMLP(config.hidden_size, config.intermediate_size, config.hidden_act),
                RMSNorm(config.hidden_size, config.rms_norm_eps),
                RMSNorm(config.hidden_size, config.rms_norm_eps),
            )
            for _ in range(config.num_hidden_layers)
        ]
        norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        super().__init__(config, Decoder(config, layers, norm))

    Config: ClassVar[type[Any]] = MistralConfig
