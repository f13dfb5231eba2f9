"""OLMo: Llama whose norms have nothing to learn.

Paper: Groeneveld et al., arXiv:2402.00838. Reference: ``transformers`` ``models/olmo``. What
differs from Llama: LayerNorm without weight or bias in place of RMSNorm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from attrs import frozen
from torch import Tensor, nn

from tramontane.cache import FullAttention
from tramontane.nn import (
    ACTIVATIONS,
    Embedding,
    GatedMLP,
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

NORM_EPS = 1e-5


@frozen(kw_only=True)
class OlmoConfig:
    """``config.json`` of an OLMo."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int = 2048
    hidden_act: str = "silu"
    attention_bias: bool = False
    tie_word_embeddings: bool = False
    rope_parameters: RopeParameters

    def __attrs_post_init__(self) -> None:
        check_positive(self, "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
        check_heads(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> OlmoConfig:
        return read(
            cls,
            data,
            supported={"hidden_act": ACTIVATIONS, "clip_qkv": ()},  # null only: nothing is clipped
            rope_parameters=read_rope_parameters(data, default_max_positions=2048),
            **attention_heads(data),
        )


class OlmoLayer(nn.Module):
    """Attention, then MLP, each on a normalized copy of the residual stream."""

    def __init__(self, config: OlmoConfig) -> None:
        super().__init__()
        self.self_attn = SelfAttention(
            config.hidden_size,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            bias=config.attention_bias,
        )
        self.mlp = GatedMLP(config.hidden_size, config.intermediate_size, config.hidden_act)
        self.input_layernorm = _norm(config)
        self.post_attention_layernorm = _norm(config)

    def forward(
        self, h: Tensor, rope: Rope | None, batch: ForwardBatch, cache: LayerCache
    ) -> Tensor:
        h = h + self.self_attn(self.input_layernorm(h), rope, batch, cache)  # [T, hidden]
        h = h + self.mlp(self.post_attention_layernorm(h))
        return h


class OlmoModel(nn.Module):
    """Embedding, layers and final norm."""

    def __init__(self, config: OlmoConfig) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(OlmoLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = _norm(config)
        self.rotary = rotary_from_config(config)

    def forward(self, batch: ForwardBatch, caches: Sequence[LayerCache]) -> Tensor:
        h = self.embed_tokens(batch.token_ids)  # [T, hidden]
        rope = self.rotary(batch, h.dtype)
        for layer, cache in zip(self.layers, caches, strict=True):
            h = layer(h, rope, batch, cache)
        out: Tensor = self.norm(h)
        return out


class Olmo(nn.Module):
    """``OlmoForCausalLM``."""

    def __init__(self, config: OlmoConfig) -> None:
        super().__init__()
        self.model = OlmoModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, batch: ForwardBatch, caches: Sequence[LayerCache]) -> Tensor:
        h: Tensor = self.model(batch, caches)  # [T, hidden]
        return h

    def logits(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.lm_head(hidden)  # [N, vocab]
        return out

    @staticmethod
    def cache_specs(config: OlmoConfig) -> Sequence[CacheSpec]:
        spec = FullAttention(config.num_key_value_heads, config.head_dim)
        return [spec] * config.num_hidden_layers

    Config: ClassVar[type[Any]] = OlmoConfig
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


def _norm(config: OlmoConfig) -> nn.Module:
    return nn.LayerNorm(config.hidden_size, NORM_EPS, elementwise_affine=False)
