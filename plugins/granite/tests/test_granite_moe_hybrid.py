"""GraniteMoeHybrid against transformers."""

from typing import Any, ClassVar

import pytest

from tramontane.cache import FullAttention, RecurrentState
from tramontane.errors import ConfigError
from tramontane_granite.granite_moe_hybrid import GraniteMoeHybrid, GraniteMoeHybridConfig
from tramontane_testkit import ArchitectureContract

MAMBA = {
    "layer_types": ["mamba", "attention", "mamba"],
    "num_hidden_layers": 3,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 16,
    "mamba_chunk_size": 16,
}
MULTIPLIERS = {
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.2,
    "residual_multiplier": 0.4,
    "logits_scaling": 1.5,
}
DENSE = {"num_local_experts": 0, "num_experts_per_tok": 0, "shared_intermediate_size": 48}


class TestGraniteMoeHybrid(ArchitectureContract):
    model_class = "GraniteMoeHybridForCausalLM"
    gguf_architecture = "granitehybrid"
    prompt_length = 131  # three chunks, the last one short
    base: ClassVar = {
        **MAMBA,
        **MULTIPLIERS,
        "num_local_experts": 6,
        "num_experts_per_tok": 2,
        "intermediate_size": 24,
        "shared_intermediate_size": 40,
    }
    cases: ClassVar = {
        "experts": {"tie_word_embeddings": True},
        "dense, rotated": {**DENSE, "intermediate_size": 48, "position_embedding_type": "rope"},
        "groups of heads, wide convolution": {
            "mamba_n_groups": 2,
            "mamba_d_conv": 6,
            "mamba_d_head": "auto",
            "mamba_conv_bias": False,
        },
        "biases, bounded steps, multi-head": {
            "num_key_value_heads": 4,
            "mamba_proj_bias": True,
            "attention_bias": True,
            "time_step_limit": [0.0, 50.0],
        },
        "attention last, another chunk size": {
            "layer_types": ["mamba", "mamba", "attention"],
            "mamba_chunk_size": 256,
        },
    }
    gguf_cases = ("experts", "dense, rotated", "groups of heads, wide convolution")
    llama_cpp_differs: ClassVar = {
        "groups of heads, wide convolution": "llama.cpp requires a bias of the convolution"
    }


class TestAttentionOnly(ArchitectureContract):
    """The smaller Granite 4, for which converters write files of architecture ``granite``."""

    model_class = "GraniteMoeHybridForCausalLM"
    gguf_architecture = "granite"
    base: ClassVar = {**MULTIPLIERS, **DENSE, "intermediate_size": 48, "mamba_n_heads": 8}
    cases: ClassVar = {
        "rotated": {
            "layer_types": ["attention"] * 2,
            "position_embedding_type": "rope",
            "tie_word_embeddings": True,
        }
    }
    gguf_cases = ("rotated",)


class TestAttentionAndExperts(ArchitectureContract):
    """Without Mamba layers but with experts: files of architecture ``granitemoe``."""

    model_class = "GraniteMoeHybridForCausalLM"
    gguf_architecture = "granitemoe"
    base: ClassVar = {
        **MULTIPLIERS,
        "num_local_experts": 6,
        "num_experts_per_tok": 2,
        "intermediate_size": 24,
        "shared_intermediate_size": 40,
        "mamba_n_heads": 8,
    }
    cases: ClassVar = {
        "rotated": {"layer_types": ["attention"] * 2, "position_embedding_type": "rope"}
    }
    gguf_cases = ("rotated",)


MINIMAL: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    **MAMBA,
}


def test_layers_keep_what_they_are_made_for() -> None:
    config = GraniteMoeHybridConfig.from_dict(MINIMAL)
    state = RecurrentState(conv=(3, 64 + 2 * 16), ssm=(8, 8, 16))
    assert list(GraniteMoeHybrid.cache_specs(config)) == [state, FullAttention(4, 8), state]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"layer_types": ["mamba", "attention"]}, "layer_types has 2 entries for 3 layers"),
        ({"layer_types": ["mamba", "moe", "mamba"]}, "layer_types names 'moe'"),
        ({"position_embedding_type": "alibi"}, "position_embedding_type is 'alibi'"),
        ({"normalization_function": "layernorm"}, "normalization_function is 'layernorm'"),
        ({"mamba_n_heads": 9}, "mamba_n_heads 9 times mamba_d_head 8 is 72"),
        ({"mamba_n_groups": 3}, "no multiple of mamba_n_groups 3"),
        ({"mamba_d_conv": 1}, "mamba_d_conv is 1"),
        ({"mamba_d_head": "wide"}, "mamba_d_head is 'wide'; expected int"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok is 9, but num_local_experts only 8"),
        ({"time_step_limit": [0.1]}, "time_step_limit"),
        ({"logits_scaling": 0}, "logits_scaling is 0"),
    ],
)
def test_values_without_meaning_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GraniteMoeHybridConfig.from_dict({**MINIMAL, **keys})


def test_only_mamba_layers_need_mamba_sizes() -> None:
    keys = {"layer_types": ["attention"] * 3, "mamba_n_heads": 9}
    GraniteMoeHybridConfig.from_dict({**MINIMAL, **keys})
