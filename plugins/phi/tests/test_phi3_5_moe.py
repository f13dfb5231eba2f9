"""Phi-3.5-MoE against transformers."""

from typing import Any, ClassVar

import pytest
import torch
from transformers.models.phimoe.modeling_phimoe import sparsemixer

from tramontane.errors import ConfigError
from tramontane.nn import rotary_from_config
from tramontane_phi.phi3_5_moe import Phi3_5MoEConfig, sparse_mixer
from tramontane_testkit import ArchitectureContract

FACTORS = [1.0, 1.3, 2.0, 4.0]


def longrope(original: int, long_factor: list[float] = FACTORS) -> dict[str, Any]:
    return {
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 1000.0,
            "short_factor": FACTORS,
            "long_factor": long_factor,
            "short_mscale": 1.1,
            "long_mscale": 1.4,
            "original_max_position_embeddings": original,
        }
    }


class TestPhi3_5MoE(ArchitectureContract):
    model_class = "PhimoeForCausalLM"
    gguf_architecture = "phimoe"
    base: ClassVar = {"num_local_experts": 6}
    cases: ClassVar = {
        "two of six": {},
        "biases": {"attention_bias": True, "lm_head_bias": True},
        "wide jitter": {"router_jitter_noise": 0.4},
        "two experts, multi-head, window": {
            "num_local_experts": 2,
            "num_key_value_heads": 4,
            "sliding_window": 8,
        },
        # transformers keeps the short factors past the switch, so the two lists are one here.
        "longrope, long prompt": longrope(32),
        "longrope, growing past the switch": longrope(64),
    }
    gguf_cases = ("two of six", "biases")
    llama_cpp_differs: ClassVar = dict.fromkeys(
        gguf_cases, "llama.cpp weighs experts by a plain softmax instead of SparseMixer"
    )


@pytest.mark.parametrize("jitter", [0.0, 0.01, 0.3])
def test_routing_equals_transformers(jitter: float) -> None:
    logits = torch.randn(500, 7, generator=torch.Generator().manual_seed(0))
    logits[:50] *= 0.01
    logits[50:100] -= 5
    weights, experts = sparse_mixer(jitter)(logits)
    expected_weights, expected_experts = sparsemixer(logits, jitter, training=False)
    assert torch.equal(experts, expected_experts)
    torch.testing.assert_close(weights, expected_weights)


MINIMAL: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def test_both_factors_change_at_the_switch() -> None:
    long_factor = [2.0, 3.0, 5.0, 9.0]
    config = Phi3_5MoEConfig.from_dict({**MINIMAL, **longrope(32, long_factor)})

    class Batch:
        positions = torch.tensor([7, 9])
        query_lens: ClassVar = [1, 1]
        kv_lens: ClassVar = [32, 33]
        seq_lens = None

    rope = rotary_from_config(config)(Batch(), torch.float32)
    plain = 1000.0 ** -(torch.arange(4) / 4)
    short, long = 7 * plain / torch.tensor(FACTORS), 9 * plain / torch.tensor(long_factor)
    torch.testing.assert_close(rope.cos[0, 0, :4], 1.1 * short.cos())
    torch.testing.assert_close(rope.cos[1, 0, :4], 1.4 * long.cos())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"num_experts_per_tok": 3}, "num_experts_per_tok is 3"),
        ({"num_local_experts": 1}, "num_local_experts is 1"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope_type is 'yarn'"),
    ],
)
def test_what_it_does_not_cover_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Phi3_5MoEConfig.from_dict({**MINIMAL, **keys})
