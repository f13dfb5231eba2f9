"""SmolLM3 against transformers."""

from typing import Any, ClassVar

import pytest

from tramontane.cache import FullAttention, SlidingAttention
from tramontane.errors import ConfigError
from tramontane_llama.smollm3 import SmolLm3, SmolLm3Config
from tramontane_testkit import ArchitectureContract

SLIDING = {"use_sliding_window": True, "sliding_window": 8}


class TestSmolLm3(ArchitectureContract):
    model_class = "SmolLM3ForCausalLM"
    cases: ClassVar = {
        "every fourth layer without positions": {"num_hidden_layers": 4},
        "every second": {"no_rope_layer_interval": 2},
        "listed": {"no_rope_layers": [0, 1]},
        "with windows": {"no_rope_layer_interval": 2, **SLIDING},
        "untied, with biases, multi-head": {
            "tie_word_embeddings": False,
            "attention_bias": True,
            "num_key_value_heads": 4,
        },
    }
    gguf_architecture = "smollm3"
    gguf_cases = ("every fourth layer without positions",)


MINIMAL: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
}


def test_windows_fall_on_layers_without_positions() -> None:
    config = SmolLm3Config.from_dict({**MINIMAL, **SLIDING})
    specs = SmolLm3.cache_specs(config)
    full = FullAttention(4, 8)
    assert list(specs) == [full, full, full, SlidingAttention(4, 8, window=8)]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"no_rope_layers": [1, 1]}, "no_rope_layers has 2 entries for 4 layers"),
        ({"layer_types": ["full_attention"] * 3 + ["chunked"]}, "'chunked'"),
        ({"layer_types": ["sliding_attention"] * 4}, "sliding_window is None"),
    ],
)
def test_contradictions_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SmolLm3Config.from_dict({**MINIMAL, **keys})
