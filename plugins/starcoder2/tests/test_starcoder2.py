"""StarCoder2 against transformers."""

from typing import Any, ClassVar

import pytest

from tramontane.cache import FullAttention, SlidingAttention
from tramontane.errors import ConfigError
from tramontane_starcoder2.starcoder2 import Starcoder2, Starcoder2Config
from tramontane_testkit import ArchitectureContract


class TestStarcoder2(ArchitectureContract):
    model_class = "Starcoder2ForCausalLM"
    gguf_architecture = "starcoder2"
    cases: ClassVar = {
        "tied": {},
        "untied, multi-head": {"tie_word_embeddings": False, "num_key_value_heads": 4},
        "window": {"sliding_window": 8},
        "without biases, large eps": {"use_bias": False, "norm_epsilon": 1e-2},
        "linear scaling": {
            "rope_parameters": {"rope_type": "linear", "rope_theta": 1e5, "factor": 4.0}
        },
    }
    gguf_cases = ("tied", "untied, multi-head", "linear scaling")


MINIMAL: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def test_a_window_is_on_all_layers() -> None:
    config = Starcoder2Config.from_dict(MINIMAL)
    assert list(Starcoder2.cache_specs(config)) == [FullAttention(2, 8)] * 2
    config = Starcoder2Config.from_dict({**MINIMAL, "sliding_window": 8})
    assert list(Starcoder2.cache_specs(config)) == [SlidingAttention(2, 8, window=8)] * 2


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"sliding_window": 0}, "sliding_window is 0"),
        ({"mlp_type": "gated"}, "mlp_type is 'gated'"),
        ({"norm_type": "rms_norm"}, "norm_type is 'rms_norm'"),
    ],
)
def test_what_it_does_not_cover_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Starcoder2Config.from_dict({**MINIMAL, **keys})
