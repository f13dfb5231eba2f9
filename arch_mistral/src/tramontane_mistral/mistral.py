"""Mistral 7B and its kin.

Paper: Jiang et al., arXiv:2310.06825. Reference: ``transformers`` ``models/mistral``. What
differs from Llama: every layer may have a sliding window (version 0.1 has, later ones have not),
no projection has a bias, and the head size may differ from the width shared out over the heads
(Mistral Nemo).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from attrs import frozen
from torch import Tensor, nn

from tramontane.cache import FullAttention, SlidingAttention
from tramontane.nn import (
    ACTIVATIONS,
    Embedding,
    GatedMLP,
    RMSNorm,
    Rope,
    RopeParameters,
    SelfAttention,
    attention_heads,
    check_heads,
    check_positive,
    read,
    read_rope_parameters,
    rotary_from_config,
)
from tramontane.protocols import CacheSpec, ForwardBatch, LayerCache, Tie, WeightRule


@frozen(kw_only=True)
class MistralConfig:
    """``config.json`` of a Mistral.

    Attributes:
        sliding_window: tokens each token sees, itself among them; None for all. A file that does
            not mention it means 4096, as in transformers; null means None.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int = 131072
    rms_norm_eps: float = 1e-6
    hidden_act: str = "silu"
    sliding_window: int | None = None
    tie_word_embeddings: bool = False
    rope_parameters: RopeParameters

    def __attrs_post_init__(self) -> None:
        check_positive(self, "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
        check_heads(self)
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


class MistralLayer(nn.Module):
    """Attention, then ``mlp``, each on a normalized copy of the residual stream."""

    def __init__(self, config: MistralConfig) -> None:
        super().__init__()
        self.self_attn = SelfAttention(
            config.hidden_size,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            window=config.sliding_window,
        )
        self.mlp = GatedMLP(config.hidden_size, config.intermediate_size, config.hidden_act)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, h: Tensor, rope: Rope, batch: ForwardBatch, cache: LayerCache) -> Tensor:
        h = h + self.self_attn(self.input_layernorm(h), rope, batch, cache)  # [T, hidden]
        out: Tensor = h + self.mlp(self.post_attention_layernorm(h))
        return out


class MistralModel(nn.Module):
    """Embedding, layers and final norm."""

    def __init__(self, config: MistralConfig, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(layers)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary = rotary_from_config(config)

    def forward(self, batch: ForwardBatch, caches: Sequence[LayerCache]) -> Tensor:
        h = batch.embeddings
        if h is None:
            h = self.embed_tokens(batch.token_ids)  # [T, hidden]
        rope = self.rotary(batch, h.dtype)
        for layer, cache in zip(self.layers, caches, strict=True):
            h = layer(h, rope, batch, cache)
        out: Tensor = self.norm(h)
        return out


class Mistral(nn.Module):
    """``MistralForCausalLM``."""

    Layer: ClassVar[type[nn.Module]] = MistralLayer

    def __init__(self, config: MistralConfig) -> None:
        super().__init__()
        layers = [self.Layer(config) for _ in range(config.num_hidden_layers)]
        self.model = MistralModel(config, layers)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, batch: ForwardBatch, caches: Sequence[LayerCache]) -> Tensor:
        h: Tensor = self.model(batch, caches)  # [T, hidden]
        return h

    def logits(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.lm_head(hidden)  # [N, vocab]
        return out

    @staticmethod
    def cache_specs(config: MistralConfig) -> Sequence[CacheSpec]:
        heads, size, window = config.num_key_value_heads, config.head_dim, config.sliding_window
        full = FullAttention(heads, size)
        spec = full if window is None else SlidingAttention(heads, size, window=window)
        return [spec] * config.num_hidden_layers

    Config: ClassVar[type[Any]] = MistralConfig
    WEIGHTS: ClassVar[Sequence[WeightRule]] = (Tie("model.embed_tokens.weight", "lm_head.weight"),)
    PARALLEL_PLAN: ClassVar[Mapping[str, str]] = {
        "model.layers.*.self_attn.q_proj": "column",
        "model.layers.*.self_attn.k_proj": "column",
        "model.layers.*.self_attn.v_proj": "column",
        "model.layers.*.self_attn.o_proj": "row",
        "model.layers.*.mlp.gate_proj": "column",
        "model.layers.*.mlp.up_proj": "column",
        "model.layers.*.mlp.down_proj": "row",
        "lm_head": "column",
    }
