"""Phi-3.5-MoE.

Paper: Abdin et al., arXiv:2404.14219; routing: Liu et al., "GRIN", arXiv:2409.12136. Reference:
``transformers`` ``models/phimoe``. What differs from Phi 3: projections are stored apart and may
have biases, LayerNorm in place of RMSNorm, and the MLP is sixteen experts of which SparseMixer
picks two.

Past the original context transformers keeps the short factors and only changes the factor on cos
and sin; here both change, as in the model's own code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from attrs import frozen
from torch import Tensor, nn

from tramontane.errors import ConfigError
from tramontane.nn import (
    ACTIVATIONS,
    MIXTRAL_NAMES,
    CausalLM,
    Decoder,
    DecoderConfig,
    GatedExperts,
    LayerNorm,
    MoE,
    PreNormLayer,
    SelfAttention,
    attention_heads,
    check_positive,
    expert_weights,
    read,
    read_rope_parameters,
)
from tramontane.nn.moe import Router
from tramontane.protocols import Rename, WeightRule
from tramontane_phi.phi3 import check_rope_type

MAX_POSITIONS = 131072


@frozen(kw_only=True)
class Phi3_5MoEConfig(DecoderConfig):  # noqa: N801
    """``config.json`` of a Phi-3.5-MoE.

    Attributes:
        rms_norm_eps: epsilon of the layer norms (the name is upstream's).
        sliding_window: tokens each token sees, itself among them; None for all.
        router_jitter_noise: half the distance from the best expert, relative, within which
            others share in its weight.
        lm_head_bias: whether the head has a bias.
    """

    max_position_embeddings: int = MAX_POSITIONS
    rms_norm_eps: float = 1e-5
    attention_bias: bool = False
    lm_head_bias: bool = False
    sliding_window: int | None = None
    num_local_experts: int = 16
    num_experts_per_tok: int = 2
    router_jitter_noise: float = 0.01

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        check_rope_type(self)
        if self.sliding_window is not None:
            check_positive(self, "sliding_window")
        if self.num_local_experts < 2:
            raise ConfigError(f"num_local_experts is {self.num_local_experts}; two are picked")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Phi3_5MoEConfig:
        return read(
            cls,
            data,
            supported={
                "hidden_act": ACTIVATIONS,
                "num_experts_per_tok": (2,),
                "partial_rotary_factor": (1.0,),
            },
            rope_parameters=read_rope_parameters(
                data, default_theta=1_000_000.0, default_max_positions=MAX_POSITIONS
            ),
            **attention_heads({"num_key_value_heads": 8, **data}),
        )

    def window(self, layer_idx: int) -> int | None:
        return self.sliding_window


def sparse_mixer(jitter: float) -> Router:
    """Two experts a token by SparseMixer, as it is after training.

    The best expert's weight is its share in a softmax over those whose logits are within
    ``2 * jitter`` of it, relative to the larger magnitude; then the same for the second best with
    the best left out. The weights do not sum to one.
    """

    def pick(logits: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        best, chosen = candidates.max(-1, keepdim=True)
        scale = logits.abs().clamp(min=best)
        near = (best - candidates) / scale <= 2 * jitter
        shares = candidates.masked_fill(~near, float("-inf")).softmax(-1)
        return shares.gather(-1, chosen), chosen

    def route(logits: Tensor) -> tuple[Tensor, Tensor]:
        first, best = pick(logits, logits)
        second, next_best = pick(logits, logits.scatter(-1, best, float("-inf")))
        return torch.cat((first, second), -1), torch.cat((best, next_best), -1)

    return route


def _layer(config: Phi3_5MoEConfig) -> nn.Module:
    hidden, eps = config.hidden_size, config.rms_norm_eps
    experts = GatedExperts(
        config.num_local_experts, hidden, config.intermediate_size, config.hidden_act
    )
    return PreNormLayer(
        SelfAttention(
            hidden,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            bias=config.attention_bias,
            window=config.sliding_window,
        ),
        MoE(hidden, experts, config.num_local_experts, sparse_mixer(config.router_jitter_noise)),
        LayerNorm(hidden, eps),
        LayerNorm(hidden, eps),
    )


class Phi3_5MoE(CausalLM):  # noqa: N801
    """``PhiMoEForCausalLM``."""

    def __init__(self, config: Phi3_5MoEConfig) -> None:
        layers = [_layer(config) for _ in range(config.num_hidden_layers)]
        norm = LayerNorm(config.hidden_size, config.rms_norm_eps)
        super().__init__(config, Decoder(config, layers, norm), head_bias=config.lm_head_bias)

    Config: ClassVar[type[Any]] = Phi3_5MoEConfig
    WEIGHTS: ClassVar[Sequence[WeightRule]] = (
        *CausalLM.WEIGHTS,
        *MIXTRAL_NAMES,
        Rename(r"(.*\.mlp)\.router\.weight", r"\1.gate.weight"),
        *expert_weights("intermediate_size"),
    )
