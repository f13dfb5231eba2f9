"""Gemma 2 against transformers."""

from typing import Any, ClassVar

import pytest

from tramontane.cache import FullAttention, SlidingAttention
from tramontane.errors import ConfigError
from tramontane_gemma.gemma2 import Gemma2, Gemma2Config
from tramontane_testkit import ArchitectureContract

CAPS = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 1.5}
"""Tight enough to be felt by scores and logits of random weights."""


class TestGemma2(ArchitectureContract):
    model_class = "Gemma2ForCausalLM"
    gguf_architecture = "gemma2"
    base: ClassVar = {"head_dim": 12, "query_pre_attn_scalar": 12, "sliding_window": 8, **CAPS}
    cases: ClassVar = {
        "alternating windows, caps": {"num_hidden_layers": 3},
        "no caps": {"attn_logit_softcapping": None, "final_logit_softcapping": None},
        "scale of its own, multi-head": {"query_pre_attn_scalar": 30, "num_key_value_heads": 4},
        "other layers slide, untied, biases": {
            "layer_types": ["full_attention", "sliding_attention"],
            "tie_word_embeddings": False,
            "attention_bias": True,
        },
    }
    gguf_cases = ("alternating windows, caps",)


MINIMAL: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
}


def test_defaults_are_those_of_transformers() -> None:
    config = Gemma2Config.from_dict(MINIMAL)
    sliding, full = SlidingAttention(4, 256, window=4096), FullAttention(4, 256)
    assert list(Gemma2.cache_specs(config)) == [sliding, full, sliding]
    assert (config.attn_logit_softcapping, config.final_logit_softcapping) == (50.0, 30.0)
    assert config.query_pre_attn_scalar == 256


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"attn_logit_softcapping": 0.0}, "attn_logit_softcapping is 0.0"),
        ({"final_logit_softcapping": -1}, "final_logit_softcapping is -1"),
        ({"query_pre_attn_scalar": 0}, "query_pre_attn_scalar is 0"),
        ({"sliding_window": 0}, "sliding_window is 0, yet layers slide"),
        ({"hidden_activation": "sine"}, "hidden_activation is 'sine'"),
    ],
)
def test_values_without_meaning_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Gemma2Config.from_dict({**MINIMAL, **keys})
