"""Phi 1 to 2 against transformers."""

from typing import Any, ClassVar

from tramontane_phi.phi2 import Phi2Config
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


class TestPhi2(ArchitectureContract):
    model_class = "PhiForCausalLM"
    gguf_architecture = "phi2"
    cases: ClassVar = {
        "half rotated": {"num_key_value_heads": None},
        "all rotated, grouped-query": rope(1.0),
        "a quarter rotated, silu": {**rope(0.25), "hidden_act": "silu", "layer_norm_eps": 1e-2},
        "normalized queries and keys": {"qk_layernorm": True},
        "linear scaling": rope(0.5, rope_type="linear", factor=4.0),
    }
    gguf_cases = ("half rotated", "all rotated, grouped-query", "linear scaling")


def test_defaults_are_those_of_transformers() -> None:
    config = Phi2Config.from_dict(
        {
            "vocab_size": 100,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
        }
    )
    assert config.hidden_act == "gelu_new"
    assert config.rope_parameters.partial_rotary_factor == 0.5
    assert (config.num_key_value_heads, config.max_position_embeddings) == (4, 2048)
