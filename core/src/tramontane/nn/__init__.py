"""Operators that models are written with.

They hold plain ``torch.nn`` parameters named as in Hugging Face checkpoints, can be built on the
meta device, and know nothing of quantization, adapters or ranks.
"""

from torch.nn import Embedding, LayerNorm

from tramontane.nn.attention import SelfAttention
from tramontane.nn.binding import bind_kernels
from tramontane.nn.config import attention_heads, check_heads, check_positive, read
from tramontane.nn.mlp import ACTIVATIONS, GatedMLP, activation
from tramontane.nn.moe import ExpertLinear, GatedExperts, MoE, softmax_top_k
from tramontane.nn.norm import RMSNorm
from tramontane.nn.packed import PackedEmbedding, PackedExpertLinear, PackedLinear
from tramontane.nn.rope import RopeParameters, read_rope_parameters
from tramontane.nn.rotary import Rope, Rotary, rotary_from_config

__all__ = [
    "ACTIVATIONS",
    "Embedding",
    "ExpertLinear",
    "GatedExperts",
    "GatedMLP",
    "LayerNorm",
    "MoE",
    "PackedEmbedding",
    "PackedExpertLinear",
    "PackedLinear",
    "RMSNorm",
    "Rope",
    "RopeParameters",
    "Rotary",
    "SelfAttention",
    "activation",
    "attention_heads",
    "bind_kernels",
    "check_heads",
    "check_positive",
    "read",
    "read_rope_parameters",
    "rotary_from_config",
    "softmax_top_k",
]
