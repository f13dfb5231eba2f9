"""Llama against transformers."""

from typing import Any, ClassVar

import pytest

from tramontane.errors import ConfigError
from tramontane_llama.llama import LlamaConfig
from tramontane_testkit import ArchitectureContract

FACTORS_SHORT = [1.0, 1.1, 1.3, 1.6]
FACTORS_LONG = [1.0, 2.0, 3.5, 6.0]


def rope(rope_type: str, **keys: Any) -> dict[str, Any]:
    """Config keys of one scaling; head size 8 has four frequencies."""
    return {"rope_parameters": {"rope_type": rope_type, "rope_theta": 1000.0, **keys}}


class TestShapes(ArchitectureContract):
    model_class = "LlamaForCausalLM"
    cases: ClassVar = {
        "grouped-query": {},
        "multi-head": {"num_key_value_heads": 4},
        "multi-query": {"num_key_value_heads": 1},
        "head size of its own": {"head_dim": 12},
        "biases": {"attention_bias": True, "mlp_bias": True},
        "tied": {"tie_word_embeddings": True},
        "gelu, large eps": {"hidden_act": "gelu_pytorch_tanh", "rms_norm_eps": 1e-2},
    }
    gguf_architecture = "llama"
    gguf_cases = ("grouped-query", "multi-head", "multi-query", "head size of its own", "tied")


class TestRopeScalings(ArchitectureContract):
    model_class = "LlamaForCausalLM"
    cases: ClassVar = {
        "linear": rope("linear", factor=4.0),
        "dynamic": {"max_position_embeddings": 32, **rope("dynamic", factor=3.0)},
        "llama3": rope(
            "llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=32,
        ),
        "yarn": rope("yarn", factor=8.0, original_max_position_embeddings=32),
        "yarn, everything stated": rope(
            "yarn",
            factor=8.0,
            original_max_position_embeddings=32,
            beta_fast=16.0,
            beta_slow=2.0,
            mscale=0.7,
            mscale_all_dim=1.2,
            truncate=False,
        ),
        "yarn, attention factor": rope(
            "yarn", factor=8.0, original_max_position_embeddings=32, attention_factor=0.9
        ),
        "longrope, long prompt": rope(
            "longrope",
            factor=8.0,
            original_max_position_embeddings=32,
            short_factor=FACTORS_SHORT,
            long_factor=FACTORS_LONG,
        ),
        "longrope, growing past the limit": rope(
            "longrope",
            factor=4.0,
            original_max_position_embeddings=64,
            short_factor=FACTORS_SHORT,
            long_factor=FACTORS_LONG,
        ),
    }
    gguf_architecture = "llama"
    gguf_cases = ("linear", "yarn")


MINIMAL = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def test_defaults_are_those_of_transformers() -> None:
    config = LlamaConfig.from_dict(MINIMAL)
    assert config.num_key_value_heads == 4
    assert config.head_dim == 8
    assert config.max_position_embeddings == 2048
    assert config.rope_parameters.rope_theta == 10_000.0


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"num_key_value_heads": 3}, "num_key_value_heads 3"),
        ({"num_attention_heads": 5}, "no multiple of num_attention_heads"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"hidden_size": "32"}, "hidden_size is '32'; expected int"),
        ({"attention_bias": "no"}, "attention_bias is 'no'; expected bool"),
        ({"vocab_size": True}, "vocab_size is True"),
    ],
)
def test_values_it_does_not_cover_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LlamaConfig.from_dict({**MINIMAL, **keys})
