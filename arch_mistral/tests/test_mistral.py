"""Mistral against transformers."""

from typing import ClassVar

import pytest

from tramontane.cache import FullAttention, SlidingAttention
from tramontane.errors import ConfigError
from tramontane_mistral.mistral import Mistral, MistralConfig
from tramontane_testkit import ArchitectureContract

MINIMAL = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
}


class TestMistral(ArchitectureContract):
    model_class = "MistralForCausalLM"
    cases: ClassVar = {
        "window inside the prompt": {"sliding_window": 8},
        "window off the block edges": {"sliding_window": 11},
        "window met while generating": {"sliding_window": 60},
        "no window": {"sliding_window": None},
        "head size of its own": {"sliding_window": None, "head_dim": 16},
        "tied, multi-head, yarn": {
            "sliding_window": None,
            "tie_word_embeddings": True,
            "num_key_value_heads": 4,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        },
    }


def test_absent_window_is_4096_and_null_is_none() -> None:
    absent = MistralConfig.from_dict(MINIMAL)
    null = MistralConfig.from_dict({**MINIMAL, "sliding_window": None})
    assert list(Mistral.cache_specs(absent)) == [SlidingAttention(8, 4, window=4096)] * 2
    assert list(Mistral.cache_specs(null)) == [FullAttention(8, 4)] * 2


def test_window_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="sliding_window is 0"):
        MistralConfig.from_dict({**MINIMAL, "sliding_window": 0})
