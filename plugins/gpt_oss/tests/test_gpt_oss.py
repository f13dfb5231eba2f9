"""gpt-oss against transformers."""

from typing import Any, ClassVar

import pytest

from tramontane.cache import FullAttention, SlidingAttention
from tramontane.errors import ConfigError
from tramontane_gpt_oss.gpt_oss import GptOss, GptOssConfig
from tramontane_testkit import ArchitectureContract

YARN = {
    "rope_type": "yarn",
    "rope_theta": 50.0,
    "factor": 4.0,
    "beta_fast": 2.0,
    "beta_slow": 1.0,
    "original_max_position_embeddings": 32,
}
PLAIN = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}


class TestGptOss(ArchitectureContract):
    model_class = "GptOssForCausalLM"
    gguf_architecture = "gpt-oss"
    base: ClassVar = {
        "head_dim": 8,
        "num_local_experts": 6,
        "num_experts_per_tok": 2,
        "sliding_window": 8,
        "rope_parameters": {**YARN, "truncate": False},
    }
    cases: ClassVar = {
        "yarn between whole dimensions": {},
        "plain rotation": PLAIN,
        "yarn at whole dimensions, bounds that are met": {
            "rope_parameters": {**YARN, "truncate": True},
            "swiglu_limit": 0.5,
            "swiglu_alpha": 1.1,
        },
        "multi-head, tied, no biases, four of six": {
            **PLAIN,
            "num_key_value_heads": 4,
            "tie_word_embeddings": True,
            "attention_bias": False,
            "num_experts_per_tok": 4,
        },
        "every layer sees everything": {**PLAIN, "layer_types": ["full_attention"] * 2},
    }
    gguf_cases = ("yarn between whole dimensions", "plain rotation")
    llama_cpp_differs: ClassVar = {
        "yarn between whole dimensions": "llama.cpp rounds the bounds of YaRN to whole dimensions"
    }


MINIMAL: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 16,
}


def test_what_a_file_leaves_out_is_as_published() -> None:
    config = GptOssConfig.from_dict(MINIMAL)
    sliding, full = SlidingAttention(8, 64, window=128), FullAttention(8, 64)
    assert list(GptOss.cache_specs(config)) == [sliding, full, sliding]
    rope = config.rope_parameters
    assert (rope.rope_type, rope.factor, rope.truncate) == ("yarn", 32.0, False)
    assert (rope.rope_theta, rope.original_max_position_embeddings) == (150_000.0, 4096)
    stated = GptOssConfig.from_dict({**MINIMAL, "rope_scaling": None})
    assert stated.rope_parameters.rope_type == "default"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"num_experts_per_tok": 200}, "num_experts_per_tok is 200, but num_local_experts only"),
        ({"num_local_experts": 0}, "num_local_experts is 0"),
        ({"swiglu_limit": 0.0}, "swiglu_limit is 0.0"),
        ({"sliding_window": None}, "sliding_window is None, yet layers slide"),
    ],
)
def test_values_without_meaning_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GptOssConfig.from_dict({**MINIMAL, **keys})
