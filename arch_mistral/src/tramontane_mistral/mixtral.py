"""Mixtral: Mistral whose MLP is a mixture of experts.

Paper: Jiang et al., arXiv:2401.04088. Reference: ``transformers`` ``models/mixtral``. What differs
from Mistral: each token goes through the two (``num_experts_per_tok``) experts its router ranks
highest, their softmax weights scaled to sum to one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from attrs import frozen

from tramontane.nn import (
    ACTIVATIONS,
    MIXTRAL_NAMES,
    CausalLM,
    Decoder,
    GatedExperts,
    MoE,
    PreNormLayer,
    RMSNorm,
    SoftmaxTopK,
    attention_heads,
    check_experts,
    check_positive,
    expert_weights,
    read,
    read_rope_parameters,
)
from tramontane.protocols import WeightRule
from tramontane_mistral.mistral import MistralAttention, MistralConfig


@frozen(kw_only=True)
class MixtralConfig(MistralConfig):
    """``config.json`` of a Mixtral."""

    rms_norm_eps: float = 1e-5
    num_local_experts: int = 8
    num_experts_per_tok: int = 2

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        check_positive(self, "num_local_experts")
        check_experts(self, "num_local_experts")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> MixtralConfig:
        return read(
            cls,
            data,
            supported={"hidden_act": ACTIVATIONS, "partial_rotary_factor": (1.0,)},
            rope_parameters=read_rope_parameters(
                data, default_theta=1_000_000.0, default_max_positions=131072
            ),
            **attention_heads({"num_key_value_heads": 8, **data}),
        )


class MixtralExperts(MoE):
    """The MLP: experts and their router."""

    def __init__(self, config: MixtralConfig) -> None:
        experts = GatedExperts(
            config.num_local_experts,
            config.hidden_size,
            config.intermediate_size,
            config.hidden_act,
        )
        super().__init__(
            config.hidden_size,
            experts,
            config.num_local_experts,
            SoftmaxTopK(config.num_experts_per_tok),
        )


class Mixtral(CausalLM):
    """``MixtralForCausalLM``."""

    def __init__(self, config: MixtralConfig) -> None:
        layers = [
            PreNormLayer(
                MistralAttention(config),
                MixtralExperts(config),
                RMSNorm(config.hidden_size, config.rms_norm_eps),
                RMSNorm(config.hidden_size, config.rms_norm_eps),
            )
            for _ in range(config.num_hidden_layers)
        ]
        norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        super().__init__(config, Decoder(config, layers, norm))

    Config: ClassVar[type[Any]] = MixtralConfig
    WEIGHTS: ClassVar[Sequence[WeightRule]] = (
        *CausalLM.WEIGHTS,
        *MIXTRAL_NAMES,
        *expert_weights("intermediate_size"),
    )
