"""Qwen3 against transformers."""

from typing import ClassVar

from tramontane_testkit import ArchitectureContract


class TestQwen3(ArchitectureContract):
    model_class = "Qwen3ForCausalLM"
    gguf_architecture = "qwen3"
    base: ClassVar = {"head_dim": 12}
    cases: ClassVar = {
        "head size of its own": {},
        "multi-head, tied": {"num_key_value_heads": 4, "tie_word_embeddings": True},
        "biases": {"attention_bias": True},
        "window on the upper layer": {
            "use_sliding_window": True,
            "sliding_window": 8,
            "max_window_layers": 1,
        },
        "yarn": {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e6,
                "factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    }
    gguf_cases = ("head size of its own", "multi-head, tied", "yarn")
