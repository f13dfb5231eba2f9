"""Qwen2 against transformers."""

from typing import Any, ClassVar

import pytest

from tramontane.cache import FullAttention, SlidingAttention
from tramontane.errors import ConfigError
from tramontane_qwen.qwen2 import Qwen2, Qwen2Config
from tramontane_testkit import ArchitectureContract

WINDOW = {"use_sliding_window": True, "sliding_window": 8}


def yarn(factor: float) -> dict[str, Any]:
    """What the model card says to add for long texts."""
    return {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e6,
            "factor": factor,
            "original_max_position_embeddings": 32,
        }
    }


class TestQwen2(ArchitectureContract):
    model_class = "Qwen2ForCausalLM"
    gguf_architecture = "qwen2"
    cases: ClassVar = {
        "grouped-query": {},
        "multi-head, tied": {"num_key_value_heads": 4, "tie_word_embeddings": True},
        "window on the upper layer": {**WINDOW, "max_window_layers": 1},
        "window on every layer": {**WINDOW, "max_window_layers": 0},
        "yarn": yarn(4.0),
    }
    gguf_cases = ("grouped-query", "multi-head, tied", "yarn")


MINIMAL: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}


def test_window_counts_only_where_it_is_switched_on() -> None:
    off = Qwen2Config.from_dict({**MINIMAL, "sliding_window": 8, "max_window_layers": 1})
    assert list(Qwen2.cache_specs(off)) == [FullAttention(4, 8)] * 3
    on = Qwen2Config.from_dict({**MINIMAL, **WINDOW, "max_window_layers": 1})
    sliding = SlidingAttention(4, 8, window=8)
    assert list(Qwen2.cache_specs(on)) == [FullAttention(4, 8), sliding, sliding]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({**WINDOW, "max_window_layers": "all"}, "max_window_layers is 'all'; expected int"),
        ({"layer_types": ["sliding_attention"] * 3}, "sliding_window is None"),
        ({"layer_types": ["full_attention"]}, "layer_types has 1 entries for 3 layers"),
        ({"layer_types": ["full_attention"] * 2 + ["linear"]}, "layer_types names 'linear'"),
        ({"num_hidden_layers": "three"}, "num_hidden_layers is 'three'"),
    ],
)
def test_contradictions_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Qwen2Config.from_dict({**MINIMAL, **keys})
