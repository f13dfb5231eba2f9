"""What surrounds and holds the layers of a decoder-only language model.

Models differ within their layers; embedding, final norm and head, and the configuration keys of
these, are the same in most. A model file passes its own layers to `Decoder`, that to `CausalLM`,
and overrides what differs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from attrs import frozen
from torch import Tensor, nn

from tramontane.cache import FullAttention, SlidingAttention
from tramontane.errors import ConfigError
from tramontane.kernels import dispatch
from tramontane.nn.config import check_heads, check_layer_types, check_positive, check_type
from tramontane.nn.embedding import Embedding
from tramontane.nn.rope import RopeParameters
from tramontane.nn.rotary import Rope, Rotary, rotary_from_config
from tramontane.protocols import CacheSpec, ForwardBatch, LayerCache, Tie, WeightRule

FULL_ATTENTION, SLIDING_ATTENTION = "full_attention", "sliding_attention"
"""Entries of ``layer_types``."""


@frozen(kw_only=True)
class DecoderConfig:
    """The keys of ``config.json`` that every decoder has, and their checks."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    hidden_act: str = "silu"
    tie_word_embeddings: bool = False
    rope_parameters: RopeParameters

    def __attrs_post_init__(self) -> None:
        check_positive(self, "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
        check_heads(self)

    def window(self, layer_idx: int) -> int | None:
        """Tokens that a layer sees, the current one among them; None for all."""
        return None


@frozen(kw_only=True)
class SlidingDecoderConfig(DecoderConfig):
    """A decoder of which some layers see only a window.

    Attributes:
        layer_types: for each layer, ``full_attention`` or ``sliding_attention``.
        sliding_window: window of the sliding layers.
    """

    layer_types: tuple[str, ...]
    sliding_window: int | None = None

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        check_layer_types(self, FULL_ATTENTION, SLIDING_ATTENTION)
        if SLIDING_ATTENTION in self.layer_types and (self.sliding_window or 0) < 1:
            raise ConfigError(f"sliding_window is {self.sliding_window}, yet layers slide")

    def window(self, layer_idx: int) -> int | None:
        return self.sliding_window if self.layer_types[layer_idx] == SLIDING_ATTENTION else None


def read_layer_types(
    data: Mapping[str, Any], slides: Callable[[int], bool]
) -> dict[str, tuple[str, ...]]:
    """``layer_types``, for `read`: the file's own, else sliding where ``slides(layer_idx)``.

    Raises:
        ConfigError: ``num_hidden_layers`` is no number.
    """
    given = data.get("layer_types")
    if given is not None:
        return {"layer_types": check_type("layer_types", given, "tuple[str, ...]")}
    num_layers = check_type("num_hidden_layers", data.get("num_hidden_layers", 0), "int")
    kinds = (SLIDING_ATTENTION if slides(i) else FULL_ATTENTION for i in range(num_layers))
    return {"layer_types": tuple(kinds)}


class PreNormLayer(nn.Module):
    """Attention, then MLP, each on a normalized copy of the residual stream.

    Args:
        self_attn: called with ``(x, rope, batch, cache)``, e.g. `SelfAttention`.
        mlp: called with ``x``, e.g. `GatedMLP` or `MoE`.
        input_layernorm, post_attention_layernorm: norms before the one and the other.
    """

    def __init__(
        self,
        self_attn: nn.Module,
        mlp: nn.Module,
        input_layernorm: nn.Module,
        post_attention_layernorm: nn.Module,
    ) -> None:
        super().__init__()
        self.self_attn = self_attn
        self.mlp = mlp
        self.input_layernorm = input_layernorm
        self.post_attention_layernorm = post_attention_layernorm
        self._whole: dispatch.Operator | None = None

    def bind_whole(self, device: torch.device, dtype: torch.dtype) -> None:
        """Choose what computes all of it in one call, if anything does."""
        self._whole = dispatch.bind_whole("pre_norm_layer", self, device, dtype)

    def forward(
        self, h: Tensor, rope: Rope | None, batch: ForwardBatch, cache: LayerCache
    ) -> Tensor:
        if self._whole is not None:
            done: Tensor | None = self._whole(h, rope, batch, cache)
            if done is not None:
                return done
        h = h + self.self_attn(self.input_layernorm(h), rope, batch, cache)  # [T, hidden]
        out: Tensor = h + self.mlp(self.post_attention_layernorm(h))
        return out


class Decoder(nn.Module):
    """Embedding, layers and final norm.

    Args:
        config: vocabulary, width and RoPE.
        layers: each called with ``(h, rope, batch, cache)``.
        norm: the final one.
        rotary: rotation that the layers share; that of the config when None.
    """

    def __init__(
        self,
        config: DecoderConfig,
        layers: Iterable[nn.Module],
        norm: nn.Module,
        rotary: Rotary | None = None,
    ) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(layers)
        self.norm = norm
        self.rotary = rotary_from_config(config) if rotary is None else rotary
        self._whole: dispatch.Operator | None = None

    def bind_whole(self, device: torch.device, dtype: torch.dtype) -> None:
        """Choose what computes all layers in one call, if anything does."""
        self._whole = dispatch.bind_whole("decoder_layers", self, device, dtype)

    def embed(self, batch: ForwardBatch) -> Tensor:
        """What enters the first layer, [T, hidden]."""
        if batch.embeddings is not None:
            return batch.embeddings
        h: Tensor = self.embed_tokens(batch.token_ids)
        return h

    def forward(self, batch: ForwardBatch, caches: Sequence[LayerCache]) -> Tensor:
        h = self.embed(batch)
        out: Tensor = self.norm(self._through_layers(h, self.rotary(batch, h.dtype), batch, caches))
        return out

    def _through_layers(
        self, h: Tensor, rope: Rope, batch: ForwardBatch, caches: Sequence[LayerCache]
    ) -> Tensor:
        if self._whole is not None:
            done: Tensor | None = self._whole(h, rope, batch, caches)
            if done is not None:
                return done
        for layer, cache in zip(self.layers, caches, strict=True):
            h = layer(h, rope, batch, cache)
        return h


class CausalLM(nn.Module):
    """A decoder and its head: what an architecture derives from.

    Args:
        config: vocabulary and width.
        model: `Decoder` or one of its kind.
        head_bias: whether the head has a bias.
    """

    def __init__(self, config: DecoderConfig, model: nn.Module, *, head_bias: bool = False) -> None:
        super().__init__()
        self.model = model
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=head_bias)

    def forward(self, batch: ForwardBatch, caches: Sequence[LayerCache]) -> Tensor:
        h: Tensor = self.model(batch, caches)  # [T, hidden]
        return h

    def logits(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.lm_head(hidden)  # [N, vocab]
        return out

    @staticmethod
    def cache_specs(config: Any) -> Sequence[CacheSpec]:
        heads, size = config.num_key_value_heads, config.head_dim
        windows = [config.window(i) for i in range(config.num_hidden_layers)]
        return [
            FullAttention(heads, size) if w is None else SlidingAttention(heads, size, window=w)
            for w in windows
        ]

    Config: ClassVar[type[Any]] = DecoderConfig
    WEIGHTS: ClassVar[Sequence[WeightRule]] = (Tie("model.embed_tokens.weight", "lm_head.weight"),)
    PARALLEL_PLAN: ClassVar[Mapping[str, str]] = {
        "model.layers.*.self_attn.q_proj": "column",
        "model.layers.*.self_attn.k_proj": "column",
        "model.layers.*.self_attn.v_proj": "column",
        "model.layers.*.self_attn.o_proj": "row",
        "model.layers.*.mlp.gate_proj": "column",
        "model.layers.*.mlp.up_proj": "column",
        "model.layers.*.mlp.down_proj": "row",
        "model.layers.*.mlp.experts.gate_proj": "column",
        "model.layers.*.mlp.experts.up_proj": "column",
        "model.layers.*.mlp.experts.down_proj": "row",
        "lm_head": "column",
    }
