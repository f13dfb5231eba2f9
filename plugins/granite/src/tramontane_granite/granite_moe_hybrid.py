"""GraniteMoeHybrid: Granite 4.

Model card: ibm-granite/granite-4.0-h-small. Reference: ``transformers``
``models/granitemoehybrid``. What differs from Llama: most layers are Mamba-2 mixers
(arXiv:2405.21060) in place of attention; every layer has a shared MLP, beside which tokens may go
through routed experts; attention may do without rotation; and four multipliers, of embeddings,
scores, branches and logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from attrs import frozen
from torch import Tensor, nn

from tramontane.cache import FullAttention
from tramontane.errors import ConfigError
from tramontane.nn import (
    ACTIVATIONS,
    FULL_ATTENTION,
    CausalLM,
    Decoder,
    DecoderConfig,
    GatedExperts,
    GatedMLP,
    Mamba2,
    MoE,
    RMSNorm,
    Rope,
    SelfAttention,
    SoftmaxTopK,
    attention_heads,
    check_experts,
    check_layer_types,
    check_positive,
    check_type,
    expert_weights,
    read,
    read_rope_parameters,
)
from tramontane.protocols import CacheSpec, ForwardBatch, LayerCache, Rename, Split, WeightRule

MAX_POSITIONS = 2048
MAMBA = "linear_attention"
_LAYER_TYPES = {"mamba": MAMBA, "attention": FULL_ATTENTION}
"""Published files' words for transformers' own."""


@frozen(kw_only=True)
class GraniteMoeHybridConfig(DecoderConfig):
    """``config.json`` of a GraniteMoeHybrid.

    Attributes:
        layer_types: for each layer, ``linear_attention`` (Mamba-2) or ``full_attention``.
        position_embedding_type: ``rope``, or ``nope`` for no positions.
        intermediate_size: width of one expert.
        shared_intermediate_size: width of the MLP that every token goes through.
        num_local_experts: 0 for none.
        embedding_multiplier, attention_multiplier, residual_multiplier: factors on embeddings,
            on attention scores, and on what a branch adds to the residual stream.
        logits_scaling: divides the logits.
    """

    layer_types: tuple[str, ...]
    max_position_embeddings: int = MAX_POSITIONS
    rms_norm_eps: float = 1e-6
    attention_bias: bool = False
    position_embedding_type: str = "nope"
    shared_intermediate_size: int = 1024
    num_local_experts: int = 8
    num_experts_per_tok: int = 2
    embedding_multiplier: float = 1.0
    attention_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    logits_scaling: float = 1.0
    mamba_n_heads: int = 128
    mamba_d_head: int
    mamba_n_groups: int = 1
    mamba_d_state: int = 256
    mamba_d_conv: int = 4
    mamba_expand: int = 2
    mamba_conv_bias: bool = True
    mamba_proj_bias: bool = False
    time_step_limit: tuple[float, ...] = (0.0, float("inf"))

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        check_positive(self, "shared_intermediate_size")
        check_layer_types(self, MAMBA, FULL_ATTENTION)
        if MAMBA in self.layer_types:
            self._check_mamba()
        check_experts(self, "num_local_experts")
        if not self.logits_scaling:
            raise ConfigError("logits_scaling is 0, and logits are divided by it")

    def _check_mamba(self) -> None:
        check_positive(
            self, *(f"mamba_{size}" for size in ("n_heads", "d_head", "n_groups", "d_state"))
        )
        if self.mamba_d_conv < 2:
            raise ConfigError(f"mamba_d_conv is {self.mamba_d_conv}; a convolution sees 2 or more")
        inner = self.mamba_n_heads * self.mamba_d_head
        if inner != self.mamba_expand * self.hidden_size:
            raise ConfigError(
                f"mamba_n_heads {self.mamba_n_heads} times mamba_d_head {self.mamba_d_head} is "
                f"{inner}, not mamba_expand {self.mamba_expand} times hidden_size "
                f"{self.hidden_size}"
            )
        if self.mamba_n_heads % self.mamba_n_groups:
            raise ConfigError(
                f"mamba_n_heads {self.mamba_n_heads} is no multiple of mamba_n_groups "
                f"{self.mamba_n_groups}"
            )
        if len(self.time_step_limit) != 2:
            raise ConfigError(f"time_step_limit is {self.time_step_limit}; expected two numbers")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> GraniteMoeHybridConfig:
        return read(
            cls,
            data,
            supported={
                "hidden_act": ACTIVATIONS,
                "position_embedding_type": ("rope", "nope"),
                "normalization_function": ("rmsnorm",),
            },
            rope_parameters=read_rope_parameters(data, default_max_positions=MAX_POSITIONS),
            layer_types=_layer_types(data),
            mamba_d_head=_mamba_head_dim(data),
            **attention_heads(data),
        )


def _layer_types(data: Mapping[str, Any]) -> tuple[str, ...]:
    given = data.get("layer_types") or data.get("layers_block_type")
    if given is None:
        given = (MAMBA,) * check_type("num_hidden_layers", data.get("num_hidden_layers", 0), "int")
    kinds = check_type("layer_types", given, "tuple[str, ...]")
    return tuple(_LAYER_TYPES.get(kind, kind) for kind in kinds)


def _mamba_head_dim(data: Mapping[str, Any]) -> int:
    """``mamba_d_head``, which may be ``"auto"``: the inner width shared out over the heads."""
    given = data.get("mamba_d_head")
    if given is not None and given != "auto":
        return int(check_type("mamba_d_head", given, "int"))
    defaults = {"mamba_expand": 2, "hidden_size": 0, "mamba_n_heads": 128}
    expand, hidden, heads = (
        check_type(key, default if data.get(key) is None else data[key], "int")
        for key, default in defaults.items()
    )
    return int(expand * hidden // max(heads, 1))


def _mamba_sizes(config: GraniteMoeHybridConfig) -> dict[str, int]:
    return {
        "num_heads": config.mamba_n_heads,
        "head_dim": config.mamba_d_head,
        "state_size": config.mamba_d_state,
        "num_groups": config.mamba_n_groups,
        "conv_width": config.mamba_d_conv,
    }


class GraniteMoeHybridLayer(nn.Module):
    """A Mamba-2 mixer or attention, then the shared MLP and, beside it, experts."""

    def __init__(self, config: GraniteMoeHybridConfig, layer_idx: int) -> None:
        super().__init__()
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.mamba = self.self_attn = None
        if config.layer_types[layer_idx] == MAMBA:
            self.mamba = Mamba2(
                hidden,
                **_mamba_sizes(config),
                act=config.hidden_act,
                eps=eps,
                bias=config.mamba_proj_bias,
                conv_bias=config.mamba_conv_bias,
                time_step_limit=config.time_step_limit,
            )
        else:
            self.self_attn = SelfAttention(
                hidden,
                config.num_attention_heads,
                config.num_key_value_heads,
                config.head_dim,
                bias=config.attention_bias,
                scale=config.attention_multiplier,
            )
        self.block_sparse_moe = None
        if config.num_local_experts:
            count, width = config.num_local_experts, config.intermediate_size
            experts = GatedExperts(count, hidden, width, config.hidden_act)
            route = SoftmaxTopK(config.num_experts_per_tok)
            self.block_sparse_moe = MoE(hidden, experts, count, route)
        self.shared_mlp = GatedMLP(hidden, config.shared_intermediate_size, config.hidden_act)
        self.input_layernorm = RMSNorm(hidden, eps)
        self.post_attention_layernorm = RMSNorm(hidden, eps)
        self.has_rope = config.position_embedding_type == "rope"
        self.residual_multiplier = config.residual_multiplier

    def forward(
        self, h: Tensor, rope: Rope | None, batch: ForwardBatch, cache: LayerCache
    ) -> Tensor:
        x = self.input_layernorm(h)  # [T, hidden]
        if self.mamba is not None:
            x = self.mamba(x, batch, cache)
        else:
            assert self.self_attn is not None
            x = self.self_attn(x, rope if self.has_rope else None, batch, cache)
        h = h + x * self.residual_multiplier
        x = self.post_attention_layernorm(h)
        branch = self.shared_mlp(x)
        if self.block_sparse_moe is not None:
            branch = branch + self.block_sparse_moe(x)
        out: Tensor = h + branch * self.residual_multiplier
        return out


class GraniteDecoder(Decoder):
    """A decoder with scaled embeddings."""

    def __init__(self, config: GraniteMoeHybridConfig) -> None:
        layers = [GraniteMoeHybridLayer(config, i) for i in range(config.num_hidden_layers)]
        super().__init__(config, layers, RMSNorm(config.hidden_size, config.rms_norm_eps))
        self.embedding_multiplier = config.embedding_multiplier

    def embed(self, batch: ForwardBatch) -> Tensor:
        return super().embed(batch) * self.embedding_multiplier


class GraniteMoeHybrid(CausalLM):
    """``GraniteMoeHybridForCausalLM``."""

    def __init__(self, config: GraniteMoeHybridConfig) -> None:
        super().__init__(config, GraniteDecoder(config))
        self.logits_scaling = config.logits_scaling

    def logits(self, hidden: Tensor) -> Tensor:
        return super().logits(hidden) / self.logits_scaling

    @staticmethod
    def cache_specs(config: GraniteMoeHybridConfig) -> Sequence[CacheSpec]:
        return [
            Mamba2.cache_spec(**_mamba_sizes(config))
            if kind == MAMBA
            else FullAttention(config.num_key_value_heads, config.head_dim)
            for kind in config.layer_types
        ]

    Config: ClassVar[type[Any]] = GraniteMoeHybridConfig
    WEIGHTS: ClassVar[Sequence[WeightRule]] = (
        *CausalLM.WEIGHTS,
        Split(
            r"(.*\.shared_mlp)\.input_linear\.weight",
            (r"\1.gate_proj.weight", r"\1.up_proj.weight"),
            ("shared_intermediate_size", "shared_intermediate_size"),
        ),
        Rename(r"(.*\.shared_mlp)\.output_linear\.weight", r"\1.down_proj.weight"),
        Rename(r"(.*\.block_sparse_moe)\.router(?:\.layer)?\.weight", r"\1.gate.weight"),
        Rename(r"(.*\.block_sparse_moe)\.input_linear\.weight", r"\1.experts.gate_up_proj"),
        Rename(r"(.*\.block_sparse_moe)\.output_linear\.weight", r"\1.experts.down_proj"),
        *expert_weights("intermediate_size"),
    )
    PARALLEL_PLAN: ClassVar[Mapping[str, str]] = {
        "model.layers.*.self_attn.q_proj": "column",
        "model.layers.*.self_attn.k_proj": "column",
        "model.layers.*.self_attn.v_proj": "column",
        "model.layers.*.self_attn.o_proj": "row",
        "model.layers.*.shared_mlp.gate_proj": "column",
        "model.layers.*.shared_mlp.up_proj": "column",
        "model.layers.*.shared_mlp.down_proj": "row",
        "model.layers.*.block_sparse_moe.experts.gate_proj": "column",
        "model.layers.*.block_sparse_moe.experts.up_proj": "column",
        "model.layers.*.block_sparse_moe.experts.down_proj": "row",
        "lm_head": "column",
    }
