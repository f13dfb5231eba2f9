"""DeepSeek V2 against transformers."""

from typing import Any, ClassVar

import pytest
import torch

from tramontane.errors import ConfigError
from tramontane_deepseek.deepseek_v2 import DeepseekV2, DeepseekV2Config, Gate
from tramontane_testkit import ArchitectureContract

LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": None,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 12,
}
EXPERTS: dict[str, Any] = {
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.5,
}
GROUPS = {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}


def yarn(mscale: float, mscale_all_dim: float) -> dict[str, Any]:
    return {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e4,
            "factor": 8.0,
            "original_max_position_embeddings": 32,
            "beta_fast": 32,
            "beta_slow": 1,
            "mscale": mscale,
            "mscale_all_dim": mscale_all_dim,
        }
    }


class TestDeepseekV2(ArchitectureContract):
    """Prompts are long enough to expand the latents, chunks and single steps are not."""

    model_class = "DeepseekV2ForCausalLM"
    base: ClassVar = {**LATENT, **EXPERTS}
    cases: ClassVar = {
        "no query latent": {},
        "query latent, groups, tied": {"q_lora_rank": 12, "tie_word_embeddings": True, **GROUPS},
        "biases, three layers": {
            "q_lora_rank": 12,
            "attention_bias": True,
            "num_hidden_layers": 3,
            "first_k_dense_replace": 2,
        },
        "yarn": {"q_lora_rank": 12, **yarn(0.707, 0.707)},
        "yarn, two temperatures": yarn(0.5, 1.2),
    }
    gguf_architecture = "deepseek2"
    gguf_cases = ("no query latent", "query latent, groups, tied", "yarn")
    llama_cpp_differs: ClassVar = {
        "no query latent": "llama.cpp takes it for V2-Lite by its 27 layers: see test_gguf.py",
        "query latent, groups, tied": "llama.cpp takes a group's two best experts for its score, "
        "as V3 does; the reference takes the best one",
    }


MINIMAL: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    **LATENT,
    **EXPERTS,
}


def test_every_which_layer_has_experts() -> None:
    """``moe_layer_freq`` as in the code published with the model; transformers does not read it."""
    config = DeepseekV2Config.from_dict({**MINIMAL, "moe_layer_freq": 2})
    assert [config.has_experts(i) for i in range(5)] == [False, False, True, False, True]
    dense = DeepseekV2Config.from_dict({**MINIMAL, "n_routed_experts": None})
    assert not any(dense.has_experts(i) for i in range(5))


def test_normalized_weights_sum_to_one_and_are_not_scaled() -> None:
    """``norm_topk_prob`` as in the code published with the model; transformers does not read it."""
    logits = torch.randn(7, 8)
    plain = DeepseekV2Config.from_dict(MINIMAL)
    normalized = DeepseekV2Config.from_dict({**MINIMAL, "norm_topk_prob": True})
    weights, experts = Gate(plain).route(logits)
    scaled, same = Gate(normalized).route(logits)
    assert torch.equal(experts, same)
    torch.testing.assert_close(scaled.sum(-1), torch.ones(7))
    torch.testing.assert_close(scaled, weights / weights.sum(-1, keepdim=True))


def test_shared_experts_may_be_absent() -> None:
    config = DeepseekV2Config.from_dict({**MINIMAL, "n_shared_experts": None})
    with torch.device("meta"):
        assert DeepseekV2(config).model.layers[1].mlp.shared_experts is None


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"topk_method": "noaux_tc"}, "topk_method is 'noaux_tc'"),
        ({"scoring_func": "sigmoid"}, "scoring_func is 'sigmoid'"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok is 9, but a token chooses from 8"),
        ({**GROUPS, "num_experts_per_tok": 5}, "chooses from 4 experts"),
        ({"moe_layer_freq": 0}, "moe_layer_freq is 0"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"q_lora_rank": "wide"}, "q_lora_rank is 'wide'"),
    ],
)
def test_values_without_meaning_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DeepseekV2Config.from_dict({**MINIMAL, **keys})
