"""SmolLM3: Llama in which some layers see no positions.

Reference: ``transformers`` ``models/smollm3``; model card of HuggingFaceTB/SmolLM3-3B. What
differs from Llama: every fourth layer leaves out rotary embedding (NoPE, arXiv:2501.18795), a
config may give those layers a sliding window, and some defaults.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from attrs import frozen
from torch import Tensor

from tramontane.cache import FullAttention, SlidingAttention
from tramontane.errors import ConfigError
from tramontane.nn import ACTIVATIONS, Rope, attention_heads, read, read_rope_parameters
from tramontane.protocols import CacheSpec, ForwardBatch, LayerCache
from tramontane_llama.llama import Llama, LlamaConfig, LlamaLayer

_FULL, _SLIDING = "full_attention", "sliding_attention"


@frozen(kw_only=True)
class SmolLm3Config(LlamaConfig):
    """``config.json`` of a SmolLM3.

    Attributes:
        no_rope_layers: for each layer, 1 when it *has* rotary embedding (the name is upstream's).
        layer_types: for each layer, ``full_attention`` or ``sliding_attention``.
        sliding_window: window of the sliding layers.
    """

    max_position_embeddings: int = 32768
    tie_word_embeddings: bool = True
    no_rope_layers: tuple[int, ...]
    layer_types: tuple[str, ...]
    sliding_window: int | None = None

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        for key in ("no_rope_layers", "layer_types"):
            entries = getattr(self, key)
            if len(entries) < self.num_hidden_layers:
                raise ConfigError(
                    f"{key} has {len(entries)} entries for {self.num_hidden_layers} layers"
                )
        for kind in self.layer_types:
            if kind not in (_FULL, _SLIDING):
                raise ConfigError(f"layer_types names {kind!r}; {_FULL} and {_SLIDING} exist")
        if _SLIDING in self.layer_types and (self.sliding_window or 0) < 1:
            raise ConfigError(f"sliding_window is {self.sliding_window}, yet layers slide")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SmolLm3Config:
        num_layers = data.get("num_hidden_layers") or 0
        interval = data.get("no_rope_layer_interval") or 4
        roped = data.get("no_rope_layers")
        if roped is None:
            roped = [int((i + 1) % interval != 0) for i in range(num_layers)]
        slides = data.get("use_sliding_window") and data.get("sliding_window") is not None
        types = data.get("layer_types")
        if types is None:
            types = [_SLIDING if slides and not has_rope else _FULL for has_rope in roped]
        return read(
            cls,
            data,
            supported={"hidden_act": ACTIVATIONS, "partial_rotary_factor": (1.0,)},
            rope_parameters=read_rope_parameters(
                data, default_theta=2_000_000.0, default_max_positions=32768
            ),
            no_rope_layers=tuple(roped),
            layer_types=tuple(types),
            **attention_heads({"num_key_value_heads": 4, **data}),
        )

    def window(self, layer_idx: int) -> int | None:
        """Window of a layer, or None when it sees everything."""
        return self.sliding_window if self.layer_types[layer_idx] == _SLIDING else None


class SmolLm3Layer(LlamaLayer):
    """A Llama layer, perhaps without rotation, perhaps with a window."""

    def __init__(self, config: LlamaConfig, layer_idx: int) -> None:
        assert isinstance(config, SmolLm3Config)
        super().__init__(config, layer_idx)
        self.self_attn.window = config.window(layer_idx)
        self.has_rope = bool(config.no_rope_layers[layer_idx])

    def forward(
        self, h: Tensor, rope: Rope | None, batch: ForwardBatch, cache: LayerCache
    ) -> Tensor:
        return super().forward(h, rope if self.has_rope else None, batch, cache)


class SmolLm3(Llama):
    """``SmolLM3ForCausalLM``."""

    Layer = SmolLm3Layer

    @staticmethod
    def cache_specs(config: Any) -> Sequence[CacheSpec]:
        heads, size = config.num_key_value_heads, config.head_dim
        windows = [config.window(i) for i in range(config.num_hidden_layers)]
        return [
            FullAttention(heads, size) if w is None else SlidingAttention(heads, size, window=w)
            for w in windows
        ]

    Config: ClassVar[type[Any]] = SmolLm3Config
