"""DeepSeek V2, V2.5, V2-Lite and Coder-V2.

Paper: DeepSeek-AI, arXiv:2405.04434. Reference: ``transformers`` ``models/deepseek_v2``, and the
code published with the model where that leaves keys out (``moe_layer_freq``, ``norm_topk_prob``).
What differs from Llama: keys and values are products of a cached latent, and so, in the larger
models, are queries; only part of a head is rotated, and there pairs lie side by side; beyond the
first layers the MLP is a mixture of experts, of which some serve every token, and the others may
be chosen within groups only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from attrs import frozen
from torch import Tensor, nn
from torch.nn import functional as F

from tramontane.cache import LatentAttention
from tramontane.errors import ConfigError
from tramontane.nn import (
    ACTIVATIONS,
    AdjacentRope,
    CausalLM,
    Decoder,
    DecoderConfig,
    GatedExperts,
    GatedMLP,
    LatentSelfAttention,
    MoE,
    PreNormLayer,
    RMSNorm,
    Rope,
    Rotary,
    attention_heads,
    check_positive,
    expert_weights,
    read,
    read_rope_parameters,
)
from tramontane.protocols import CacheSpec, WeightRule

MAX_POSITIONS = 2048
GREEDY, WITHIN_GROUPS = "greedy", "group_limited_greedy"


@frozen(kw_only=True)
class DeepseekV2Config(DecoderConfig):
    """``config.json`` of a DeepSeek V2.

    Attributes:
        q_lora_rank: width of the queries' latent; None where queries have none.
        kv_lora_rank: width of the latent that is cached.
        qk_nope_head_dim, qk_rope_head_dim: parts of a query or key without and with position.
        n_routed_experts: experts of a layer; 0 for dense layers only.
        n_shared_experts: experts beside them that every token goes through, as one wider MLP.
        first_k_dense_replace: layers at the beginning that have no experts.
        moe_layer_freq: every which of the others has.
        n_group, topk_group: groups of experts, and how many of them a token may choose from.
        norm_topk_prob: whether the weights of a token's experts are scaled to sum to one, instead
            of by ``routed_scaling_factor``.
    """

    max_position_embeddings: int = MAX_POSITIONS
    rms_norm_eps: float = 1e-6
    attention_bias: bool = False
    q_lora_rank: int | None = None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    n_routed_experts: int = 0
    n_shared_experts: int = 0
    num_experts_per_tok: int = 0
    moe_intermediate_size: int = 0
    first_k_dense_replace: int = 0
    moe_layer_freq: int = 1
    n_group: int = 1
    topk_group: int = 1
    topk_method: str = GREEDY
    norm_topk_prob: bool = False
    routed_scaling_factor: float = 1.0

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        check_positive(
            self, "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim",
            "moe_layer_freq",
        )  # fmt: skip
        if self.q_lora_rank is not None:
            check_positive(self, "q_lora_rank")
        if self.n_routed_experts:
            check_positive(self, "num_experts_per_tok", "moe_intermediate_size")
            self._check_groups()

    def _check_groups(self) -> None:
        check_positive(self, "n_group", "topk_group")
        if self.n_routed_experts % self.n_group or self.topk_group > self.n_group:
            raise ConfigError(
                f"n_group is {self.n_group} and topk_group {self.topk_group}: that many groups "
                f"cannot be chosen of, or made of, {self.n_routed_experts} experts"
            )
        candidates = self.n_routed_experts
        if self.chooses_groups:
            candidates = candidates // self.n_group * self.topk_group
        if self.num_experts_per_tok > candidates:
            raise ConfigError(
                f"num_experts_per_tok is {self.num_experts_per_tok}, but a token chooses from "
                f"{candidates} experts (n_routed_experts, n_group, topk_group)"
            )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        return cls._read(data, topk_method=(GREEDY, WITHIN_GROUPS), scoring_func=("softmax",))

    @classmethod
    def _read(cls, data: Mapping[str, Any], **supported: Any) -> Self:
        heads = attention_heads({**data, "head_dim": data.get("qk_rope_head_dim")})
        supported |= {
            "hidden_act": ACTIVATIONS,
            "mlp_bias": (False,),
            "partial_rotary_factor": (1.0,),
        }
        if "num_attention_heads" in data:
            # Every head has keys and values of its own, made of the one latent.
            supported["num_key_value_heads"] = (data["num_attention_heads"],)
        rope = read_rope_parameters(data, default_max_positions=MAX_POSITIONS)
        return read(cls, data, supported=supported, rope_parameters=rope, **heads)

    @property
    def chooses_groups(self) -> bool:
        """Whether a token first chooses groups of experts."""
        return self.topk_method != GREEDY and self.n_group > 1

    def has_experts(self, layer_idx: int) -> bool:
        if not self.n_routed_experts or layer_idx < self.first_k_dense_replace:
            return False
        return layer_idx % self.moe_layer_freq == 0


def within_groups(scores: Tensor, of_groups: Tensor, keep: int, fill: float) -> Tensor:
    """``scores`` [T, num_experts] with ``fill`` outside the ``keep`` groups whose score in
    ``of_groups`` [T, num_groups] is largest."""
    best = of_groups.topk(keep, dim=-1, sorted=False).indices
    kept = torch.zeros_like(of_groups, dtype=torch.bool).scatter_(1, best, True)
    size = scores.shape[-1] // of_groups.shape[-1]
    return scores.masked_fill(~kept.repeat_interleave(size, -1), fill)


class Gate(nn.Module):
    """Chooses each token's experts, in float32: small differences decide."""

    FLOAT32: ClassVar[frozenset[str]] = frozenset({"weight"})

    def __init__(self, config: DeepseekV2Config) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))

    def forward(self, x: Tensor) -> Tensor:
        """[T, hidden_size] to logits [T, n_routed_experts]."""
        return F.linear(x.float(), self.weight.float())

    def route(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and indices of the chosen experts, both [T, num_experts_per_tok]."""
        config = self.config
        scores = logits.softmax(-1)
        if config.chooses_groups:
            best = scores.view(scores.shape[0], config.n_group, -1).amax(-1)  # [T, n_group]
            scores = within_groups(scores, best, config.topk_group, 0.0)
        weights, experts = scores.topk(config.num_experts_per_tok, dim=-1)
        if config.norm_topk_prob and config.num_experts_per_tok > 1:
            return weights / weights.sum(-1, keepdim=True), experts
        return weights * config.routed_scaling_factor, experts


class DeepseekMoE(MoE):
    """Routed experts, and beside them those that every token goes through."""

    def __init__(self, config: DeepseekV2Config, gate: Gate) -> None:
        hidden, size, act = config.hidden_size, config.moe_intermediate_size, config.hidden_act
        experts = GatedExperts(config.n_routed_experts, hidden, size, act)
        super().__init__(hidden, experts, config.n_routed_experts, gate.route)
        self.gate = gate
        shared = config.n_shared_experts
        self.shared_experts = GatedMLP(hidden, size * shared, act) if shared else None

    def forward(self, x: Tensor) -> Tensor:
        h = super().forward(x)
        return h if self.shared_experts is None else h + self.shared_experts(x)


def decoder(config: DeepseekV2Config, gate: type[Gate], layout: type[Rope]) -> Decoder:
    """The layers of both generations, which differ in how experts are chosen."""
    hidden, eps = config.hidden_size, config.rms_norm_eps

    def mlp(layer_idx: int) -> nn.Module:
        if config.has_experts(layer_idx):
            return DeepseekMoE(config, gate(config))
        return GatedMLP(hidden, config.intermediate_size, config.hidden_act)

    layers = [
        PreNormLayer(
            LatentSelfAttention(
                hidden,
                config.num_attention_heads,
                q_lora_rank=config.q_lora_rank,
                kv_lora_rank=config.kv_lora_rank,
                nope_dim=config.qk_nope_head_dim,
                rope_dim=config.qk_rope_head_dim,
                v_head_dim=config.v_head_dim,
                rope=config.rope_parameters,
                bias=config.attention_bias,
            ),
            mlp(i),
            RMSNorm(hidden, eps),
            RMSNorm(hidden, eps),
        )
        for i in range(config.num_hidden_layers)
    ]
    rotary = Rotary(config.rope_parameters, config.qk_rope_head_dim, layout)
    return Decoder(config, layers, RMSNorm(hidden, eps), rotary)


class DeepseekV2(CausalLM):
    """``DeepseekV2ForCausalLM``."""

    def __init__(self, config: DeepseekV2Config) -> None:
        super().__init__(config, decoder(config, Gate, AdjacentRope))

    @staticmethod
    def cache_specs(config: DeepseekV2Config) -> Sequence[CacheSpec]:
        spec = LatentAttention(config.kv_lora_rank, config.qk_rope_head_dim)
        return [spec] * config.num_hidden_layers

    Config: ClassVar[type[Any]] = DeepseekV2Config
    WEIGHTS: ClassVar[Sequence[WeightRule]] = (
        *CausalLM.WEIGHTS,
        *expert_weights("moe_intermediate_size"),
    )
    PARALLEL_PLAN: ClassVar[Mapping[str, str]] = {
        **CausalLM.PARALLEL_PLAN,
        "model.layers.*.self_attn.q_b_proj": "column",
        "model.layers.*.self_attn.kv_b_proj": "column",
        "model.layers.*.mlp.shared_experts.gate_proj": "column",
        "model.layers.*.mlp.shared_experts.up_proj": "column",
        "model.layers.*.mlp.shared_experts.down_proj": "row",
    }
