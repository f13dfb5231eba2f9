"""The language model of Gemma 3 against transformers."""

from typing import Any, ClassVar

import pytest

from tramontane.errors import ConfigError
from tramontane_gemma.gemma3 import Gemma3TextConfig
from tramontane_testkit import ArchitectureContract

ROPES = {
    "full_attention": {"rope_type": "default", "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
}
STRETCHED = {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0}


class TestGemma3(ArchitectureContract):
    model_class = "Gemma3ForCausalLM"
    gguf_architecture = "gemma3"
    base: ClassVar = {
        "head_dim": 12,
        "query_pre_attn_scalar": 12,
        "sliding_window": 8,
        "rope_parameters": ROPES,
        "layer_types": ["sliding_attention", "full_attention"],
    }
    cases: ClassVar = {
        "two rotations": {},
        "every sixth layer sees everything, stretched": {
            "num_hidden_layers": 7,
            "layer_types": None,
            "rope_parameters": {**ROPES, "full_attention": STRETCHED},
        },
        "scale of its own, capped logits, biases": {
            "query_pre_attn_scalar": 30,
            "final_logit_softcapping": 1.5,
            "attention_bias": True,
        },
        "multi-head, untied": {"num_key_value_heads": 4, "tie_word_embeddings": False},
    }
    gguf_cases = ("every sixth layer sees everything, stretched",)


MINIMAL: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 7,
    "num_attention_heads": 8,
}


def test_files_from_before_parameters_by_layer_type() -> None:
    config = Gemma3TextConfig.from_dict(
        {
            **MINIMAL,
            "rope_theta": 1e6,
            "rope_local_base_freq": 2e4,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            "sliding_window_pattern": 3,
        }
    )
    assert config.rope_parameters.rope_type == "linear"
    assert (config.rope_parameters.rope_theta, config.rope_parameters.factor) == (1e6, 8.0)
    assert config.local_rope_parameters.rope_type == "default"
    assert config.local_rope_parameters.rope_theta == 2e4
    assert [config.window(i) for i in range(4)] == [4096, 4096, None, 4096]


def test_defaults_are_those_of_transformers() -> None:
    config = Gemma3TextConfig.from_dict(MINIMAL)
    assert config.rope_parameters.rope_theta == 1e6
    assert config.local_rope_parameters.rope_theta == 1e4
    assert [config.window(i) for i in range(7)] == [4096] * 5 + [None, 4096]
    for none in ({"sliding_window": None}, {"sliding_window_pattern": 1}):
        without = Gemma3TextConfig.from_dict({**MINIMAL, **none})
        assert [without.window(i) for i in range(7)] == [None] * 7
    assert (config.num_key_value_heads, config.head_dim) == (4, 256)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        ({"sliding_window_pattern": "six"}, "sliding_window_pattern is 'six'; expected int"),
        ({"rope_local_base_freq": "low"}, "rope_theta is 'low'"),
    ],
)
def test_what_it_does_not_cover_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Gemma3TextConfig.from_dict({**MINIMAL, **keys})
