"""GLM-4 against transformers."""

from typing import Any, ClassVar

from tramontane_glm4.glm4 import Glm4Config
from tramontane_testkit import ArchitectureContract


def rope(share: float, **keys: Any) -> dict[str, Any]:
    return {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1000.0,
            "partial_rotary_factor": share,
            **keys,
        }
    }


class TestGlm4(ArchitectureContract):
    model_class = "Glm4ForCausalLM"
    gguf_architecture = "glm4"
    base: ClassVar = {"head_dim": 16}
    cases: ClassVar = {
        "half rotated": {},
        "all rotated, multi-head": {**rope(1.0), "num_key_value_heads": 4},
        "without biases, tied": {"attention_bias": False, "tie_word_embeddings": True},
        "yarn": rope(0.5, rope_type="yarn", factor=4.0, original_max_position_embeddings=32),
    }
    gguf_cases = ("half rotated", "all rotated, multi-head", "without biases, tied", "yarn")


def test_defaults_are_those_of_transformers() -> None:
    config = Glm4Config.from_dict(
        {
            "vocab_size": 100,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
        }
    )
    assert (config.num_key_value_heads, config.head_dim) == (2, 128)
    assert config.rope_parameters.partial_rotary_factor == 0.5
    assert config.rms_norm_eps == 1.5625e-7
    assert config.attention_bias
