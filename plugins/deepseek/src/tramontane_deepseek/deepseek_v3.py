"""DeepSeek V3, V3.1 and R1.

Paper: DeepSeek-AI, arXiv:2412.19437. Reference: ``transformers`` ``models/deepseek_v3``. What
differs from V2: an expert's score is a sigmoid of its own logit, and a bias that balances the load
takes part in choosing, not in weighing; a group counts by its two best experts. Layers past the
last, which predict further tokens, are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from attrs import frozen
from torch import Tensor, nn

from tramontane.errors import ConfigError
from tramontane.nn import AdjacentRope, CausalLM, Rope
from tramontane.protocols import Drop, WeightRule
from tramontane_deepseek.deepseek_v2 import (
    DeepseekV2,
    DeepseekV2Config,
    Gate,
    decoder,
    within_groups,
)

BY_BIAS = "noaux_tc"


@frozen(kw_only=True)
class DeepseekV3Config(DeepseekV2Config):
    """``config.json`` of a DeepSeek V3.

    Attributes:
        norm_topk_prob: whether the weights of a token's experts are scaled to sum to one, before
            ``routed_scaling_factor`` multiplies them.
        rope_interleave: whether rotated pairs lie side by side; otherwise first half and second.
    """

    topk_method: str = BY_BIAS
    norm_topk_prob: bool = True
    rope_interleave: bool = True

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        return cls._read(data, topk_method=(BY_BIAS,), scoring_func=("sigmoid",))

    def _check_groups(self) -> None:
        super()._check_groups()
        if self.chooses_groups and self.n_routed_experts // self.n_group < 2:
            raise ConfigError(
                f"n_group is {self.n_group}, which leaves no two of {self.n_routed_experts} "
                "experts in a group"
            )


class BiasedGate(Gate):
    """Chooses by sigmoid and bias, weighs by sigmoid alone."""

    FLOAT32: ClassVar[frozenset[str]] = frozenset({"weight", "e_score_correction_bias"})

    def __init__(self, config: DeepseekV2Config) -> None:
        super().__init__(config)
        self.e_score_correction_bias = nn.Parameter(torch.empty(config.n_routed_experts))

    def route(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        config = self.config
        scores = logits.sigmoid()
        choice = scores + self.e_score_correction_bias
        if config.chooses_groups:
            best = choice.view(choice.shape[0], config.n_group, -1).topk(2, dim=-1).values.sum(-1)
            choice = within_groups(choice, best, config.topk_group, float("-inf"))
        experts = choice.topk(config.num_experts_per_tok, dim=-1, sorted=False).indices
        weights = scores.gather(1, experts)
        if config.norm_topk_prob:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return weights * config.routed_scaling_factor, experts


class DeepseekV3(DeepseekV2):
    """``DeepseekV3ForCausalLM``."""

    def __init__(self, config: DeepseekV3Config) -> None:
        layout = AdjacentRope if config.rope_interleave else Rope
        CausalLM.__init__(self, config, decoder(config, BiasedGate, layout))

    Config: ClassVar[type[Any]] = DeepseekV3Config
    WEIGHTS: ClassVar[Sequence[WeightRule]] = (
        Drop(r"model\.layers\.(\d+)\..*", beyond="num_hidden_layers"),
        *DeepseekV2.WEIGHTS,
    )
