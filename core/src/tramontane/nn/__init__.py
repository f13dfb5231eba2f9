"""Operators that models are written with.

They hold plain ``torch.nn`` parameters named as in Hugging Face checkpoints, can be built on the
meta device, and know nothing of quantization, adapters or ranks.
"""

from torch.nn import LayerNorm

from tramontane.nn.attention import SelfAttention
from tramontane.nn.binding import bind_kernels
from tramontane.nn.config import (
    attention_heads,
    check_experts,
    check_heads,
    check_layer_types,
    check_positive,
    check_type,
    read,
)
from tramontane.nn.decoder import (
    FULL_ATTENTION,
    SLIDING_ATTENTION,
    CausalLM,
    Decoder,
    DecoderConfig,
    PreNormLayer,
    SlidingDecoderConfig,
    read_layer_types,
)
from tramontane.nn.embedding import Embedding
from tramontane.nn.encoder import Encoder, backbone
from tramontane.nn.expert_weights import MIXTRAL_NAMES, expert_weights
from tramontane.nn.group_affine import (
    GroupAffineWeight,
    column_order,
    pack_bits,
    unpack_bits,
)
from tramontane.nn.latent_attention import LatentSelfAttention
from tramontane.nn.mlp import (
    ACTIVATIONS,
    FUSED_GATE_UP,
    MLP,
    ActivatedGate,
    BoundedGate,
    GatedMLP,
    activation,
)
from tramontane.nn.moe import ExpertLinear, GatedExperts, MoE, SoftmaxTopK
from tramontane.nn.narrow import (
    NarrowExpertLinear,
    NarrowLinear,
    PlainWeight,
    multiplies_narrow,
)
from tramontane.nn.norm import RMSNorm
from tramontane.nn.packed import PackedEmbedding, PackedExpertLinear, PackedLinear, PackedStack
from tramontane.nn.rope import RopeParameters, read_rope_parameters
from tramontane.nn.rotary import AdjacentRope, Rope, Rotary, rotary_from_config
from tramontane.nn.ssm import Mamba2
from tramontane.nn.transfer import install_transfers

__all__ = [
    "ACTIVATIONS",
    "FULL_ATTENTION",
    "FUSED_GATE_UP",
    "MIXTRAL_NAMES",
    "MLP",
    "SLIDING_ATTENTION",
    "ActivatedGate",
    "AdjacentRope",
    "BoundedGate",
    "CausalLM",
    "Decoder",
    "DecoderConfig",
    "Embedding",
    "Encoder",
    "ExpertLinear",
    "GatedExperts",
    "GatedMLP",
    "GroupAffineWeight",
    "LatentSelfAttention",
    "LayerNorm",
    "Mamba2",
    "MoE",
    "NarrowExpertLinear",
    "NarrowLinear",
    "PackedEmbedding",
    "PackedExpertLinear",
    "PackedLinear",
    "PackedStack",
    "PlainWeight",
    "PreNormLayer",
    "RMSNorm",
    "Rope",
    "RopeParameters",
    "Rotary",
    "SelfAttention",
    "SlidingDecoderConfig",
    "SoftmaxTopK",
    "activation",
    "attention_heads",
    "backbone",
    "bind_kernels",
    "check_experts",
    "check_heads",
    "check_layer_types",
    "check_positive",
    "check_type",
    "column_order",
    "expert_weights",
    "install_transfers",
    "multiplies_narrow",
    "pack_bits",
    "read",
    "read_layer_types",
    "read_rope_parameters",
    "rotary_from_config",
    "unpack_bits",
]
