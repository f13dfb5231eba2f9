"""Phi 1, 1.5 and 2.

Paper: Li et al., arXiv:2309.05463. Reference: ``transformers`` ``models/phi``. What differs from
Llama: attention and MLP both read the same normalized input and are added side by side; LayerNorm;
an MLP without gate; rotation of a part of each head; biases everywhere, the head included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from attrs import frozen
from torch import Tensor, nn

from tramontane.nn import (
    ACTIVATIONS,
    MLP,
    CausalLM,
    Decoder,
    DecoderConfig,
    LayerNorm,
    Rope,
    SelfAttention,
    attention_heads,
    read,
    read_rope_parameters,
)
from tramontane.protocols import ForwardBatch, LayerCache, Rename, WeightRule

MAX_POSITIONS = 2048


@frozen(kw_only=True)
class Phi2Config(DecoderConfig):
    """``config.json`` of a Phi 1 to 2.

    Attributes:
        qk_layernorm: whether each query and key head is normalized before rotation.
    """

    max_position_embeddings: int = MAX_POSITIONS
    layer_norm_eps: float = 1e-5
    hidden_act: str = "gelu_new"
    qk_layernorm: bool = False

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Phi2Config:
        return read(
            cls,
            data,
            supported={"hidden_act": ACTIVATIONS},
            rope_parameters=read_rope_parameters(
                {"partial_rotary_factor": 0.5, **data}, default_max_positions=MAX_POSITIONS
            ),
            **attention_heads(data),
        )


class Phi2Layer(nn.Module):
    """Attention and MLP side by side, on one normalized copy of the residual stream."""

    def __init__(self, config: Phi2Config) -> None:
        super().__init__()
        heads = config.head_dim, config.layer_norm_eps
        self.self_attn = SelfAttention(
            config.hidden_size,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            bias=True,
            q_norm=LayerNorm(*heads) if config.qk_layernorm else None,
            k_norm=LayerNorm(*heads) if config.qk_layernorm else None,
        )
        self.mlp = MLP(config.hidden_size, config.intermediate_size, config.hidden_act, bias=True)
        self.input_layernorm = LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(
        self, h: Tensor, rope: Rope | None, batch: ForwardBatch, cache: LayerCache
    ) -> Tensor:
        x = self.input_layernorm(h)
        out: Tensor = h + self.self_attn(x, rope, batch, cache) + self.mlp(x)  # [T, hidden]
        return out


class Phi2(CausalLM):
    """``PhiForCausalLM``."""

    def __init__(self, config: Phi2Config) -> None:
        layers = [Phi2Layer(config) for _ in range(config.num_hidden_layers)]
        norm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        super().__init__(config, Decoder(config, layers, norm), head_bias=True)

    Config: ClassVar[type[Any]] = Phi2Config
    WEIGHTS: ClassVar[Sequence[WeightRule]] = (
        *CausalLM.WEIGHTS,
        Rename(r"(.*\.self_attn)\.dense\.(.*)", r"\1.o_proj.\2"),
        Rename(r"(.*\.self_attn\.[qk])_layernorm\.(.*)", r"\1_norm.\2"),
        Rename(r"(.*\.mlp)\.fc1\.(.*)", r"\1.up_proj.\2"),
        Rename(r"(.*\.mlp)\.fc2\.(.*)", r"\1.down_proj.\2"),
        Rename(r"model\.final_layernorm\.(.*)", r"model.norm.\1"),
    )
