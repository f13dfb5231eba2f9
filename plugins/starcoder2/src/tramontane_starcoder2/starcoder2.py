"""StarCoder2.

Paper: Lozhkov et al., arXiv:2402.19173. Reference: ``transformers`` ``models/starcoder2``. What
differs from Llama: LayerNorm, an MLP without gate, biases everywhere but in the head, which is
usually tied, and perhaps a window on all layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from attrs import frozen

from tramontane.nn import (
    ACTIVATIONS,
    MLP,
    CausalLM,
    Decoder,
    DecoderConfig,
    LayerNorm,
    PreNormLayer,
    SelfAttention,
    attention_heads,
    check_positive,
    read,
    read_rope_parameters,
)
from tramontane.protocols import Rename, WeightRule

MAX_POSITIONS = 4096


@frozen(kw_only=True)
class Starcoder2Config(DecoderConfig):
    """``config.json`` of a StarCoder2.

    Attributes:
        use_bias: whether linear layers have biases.
        sliding_window: tokens each token sees, itself among them; None for all.
    """

    max_position_embeddings: int = MAX_POSITIONS
    norm_epsilon: float = 1e-5
    hidden_act: str = "gelu_pytorch_tanh"
    use_bias: bool = True
    sliding_window: int | None = None
    tie_word_embeddings: bool = True

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.sliding_window is not None:
            check_positive(self, "sliding_window")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Starcoder2Config:
        return read(
            cls,
            data,
            supported={
                "hidden_act": ACTIVATIONS,
                "mlp_type": ("default",),
                "norm_type": ("layer_norm",),
                "partial_rotary_factor": (1.0,),
            },
            rope_parameters=read_rope_parameters(data, default_max_positions=MAX_POSITIONS),
            **attention_heads({"num_key_value_heads": 2, **data}),
        )

    def window(self, layer_idx: int) -> int | None:
        return self.sliding_window


class Starcoder2(CausalLM):
    """``Starcoder2ForCausalLM``."""

    def __init__(self, config: Starcoder2Config) -> None:
        hidden, eps = config.hidden_size, config.norm_epsilon
        layers = [
            PreNormLayer(
                SelfAttention(
                    hidden,
                    config.num_attention_heads,
                    config.num_key_value_heads,
                    config.head_dim,
                    bias=config.use_bias,
                    window=config.sliding_window,
                ),
                MLP(hidden, config.intermediate_size, config.hidden_act, config.use_bias),
                LayerNorm(hidden, eps),
                LayerNorm(hidden, eps),
            )
            for _ in range(config.num_hidden_layers)
        ]
        super().__init__(config, Decoder(config, layers, LayerNorm(hidden, eps)))

    Config: ClassVar[type[Any]] = Starcoder2Config
    WEIGHTS: ClassVar[Sequence[WeightRule]] = (
        *CausalLM.WEIGHTS,
        Rename(r"(.*\.mlp)\.c_fc\.(.*)", r"\1.up_proj.\2"),
        Rename(r"(.*\.mlp)\.c_proj\.(.*)", r"\1.down_proj.\2"),
    )
