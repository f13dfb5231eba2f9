"""Qwen3-MoE against transformers."""

from typing import Any, ClassVar

import pytest

from tramontane.errors import ConfigError
from tramontane_qwen.qwen3_moe import Qwen3MoeConfig
from tramontane_testkit import ArchitectureContract

EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24}


class TestQwen3Moe(ArchitectureContract):
    model_class = "Qwen3MoeForCausalLM"
    gguf_architecture = "qwen3moe"
    base: ClassVar = {**EXPERTS, "head_dim": 8, "norm_topk_prob": True}
    cases: ClassVar = {
        "two of six": {},
        "weights as they are": {"norm_topk_prob": False, "num_experts_per_tok": 3},
        "all, biases": {"num_experts_per_tok": 6, "attention_bias": True},
        "first layer dense": {"mlp_only_layers": [0]},
        "every second layer": {"num_hidden_layers": 4, "decoder_sparse_step": 2},
        "window, tied, multi-head": {
            "num_key_value_heads": 4,
            "use_sliding_window": True,
            "sliding_window": 8,
            "tie_word_embeddings": True,
        },
    }
    gguf_cases = ("two of six",)


MINIMAL: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    **EXPERTS,
}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"num_experts_per_tok": 7}, "num_experts_per_tok is 7, but num_experts only 6"),
        ({"decoder_sparse_step": 0}, "decoder_sparse_step is 0"),
        ({"mlp_only_layers": ["first"]}, r"mlp_only_layers\[0\] is 'first'"),
    ],
)
def test_values_without_meaning_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Qwen3MoeConfig.from_dict({**MINIMAL, **keys})


def test_either_name_of_the_expert_count_is_read() -> None:
    assert Qwen3MoeConfig.from_dict(MINIMAL).num_experts == 6
    renamed = {k: v for k, v in MINIMAL.items() if k != "num_experts"}
    assert Qwen3MoeConfig.from_dict({**renamed, "num_local_experts": 5}).num_experts == 5
