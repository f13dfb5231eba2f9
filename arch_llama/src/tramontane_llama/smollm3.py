"""SmolLM3: Llama in which some layers see no positions.

Reference: ``transformers`` ``models/smollm3``; model card of HuggingFaceTB/SmolLM3-3B. What
differs from Llama: every fourth layer leaves out rotary embedding (NoPE, arXiv:2501.18795), a
config may give those layers a sliding window, and some defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from attrs import frozen
from torch import Tensor

from tramontane.errors import ConfigError
from tramontane.nn import (
    ACTIVATIONS,
    CausalLM,
    Decoder,
    GatedMLP,
    PreNormLayer,
    RMSNorm,
    Rope,
    SelfAttention,
    SlidingDecoderConfig,
    attention_heads,
    read,
    read_layer_types,
    read_rope_parameters,
)
from tramontane.protocols import ForwardBatch, LayerCache


@frozen(kw_only=True)
class SmolLm3Config(SlidingDecoderConfig):
    """``config.json`` of a SmolLM3.

    Attributes:
        no_rope_layers: for each layer, 1 when it *has* rotary embedding (the name is upstream's).
    """

    max_position_embeddings: int = 32768
    rms_norm_eps: float = 1e-6
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = True
    no_rope_layers: tuple[int, ...]

    def __attrs_post_init__(self) -> None:
        if len(self.no_rope_layers) != self.num_hidden_layers:
            raise ConfigError(
                f"no_rope_layers has {len(self.no_rope_layers)} entries for "
                f"{self.num_hidden_layers} layers"
            )
        super().__attrs_post_init__()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SmolLm3Config:
        num_layers = data.get("num_hidden_layers") or 0
        interval = data.get("no_rope_layer_interval") or 4
        roped = data.get("no_rope_layers")
        if roped is None:
            roped = [int((i + 1) % interval != 0) for i in range(num_layers)]
        slides = data.get("use_sliding_window") and data.get("sliding_window") is not None
        types = read_layer_types(data, lambda i: bool(slides and not any(roped[i : i + 1])))
        return read(
            cls,
            data,
            supported={"hidden_act": ACTIVATIONS, "partial_rotary_factor": (1.0,)},
            rope_parameters=read_rope_parameters(
                data, default_theta=2_000_000.0, default_max_positions=32768
            ),
            no_rope_layers=tuple(roped),
            **types,
            **attention_heads({"num_key_value_heads": 4, **data}),
        )


class SmolLm3Layer(PreNormLayer):
    """A Llama layer, perhaps without rotation, perhaps with a window."""

    def __init__(self, config: SmolLm3Config, layer_idx: int) -> None:
        super().__init__(
            SelfAttention(
                config.hidden_size,
                config.num_attention_heads,
                config.num_key_value_heads,
                config.head_dim,
                bias=config.attention_bias,
                window=config.window(layer_idx),
            ),
            GatedMLP(
                config.hidden_size, config.intermediate_size, config.hidden_act, config.mlp_bias
            ),
            RMSNorm(config.hidden_size, config.rms_norm_eps),
            RMSNorm(config.hidden_size, config.rms_norm_eps),
        )
        self.has_rope = bool(config.no_rope_layers[layer_idx])

    def forward(
        self, h: Tensor, rope: Rope | None, batch: ForwardBatch, cache: LayerCache
    ) -> Tensor:
        return super().forward(h, rope if self.has_rope else None, batch, cache)


class SmolLm3(CausalLM):
    """``SmolLM3ForCausalLM``."""

    def __init__(self, config: SmolLm3Config) -> None:
        layers = [SmolLm3Layer(config, i) for i in range(config.num_hidden_layers)]
        norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        super().__init__(config, Decoder(config, layers, norm))

    Config: ClassVar[type[Any]] = SmolLm3Config
