"""DeepSeek V3 against transformers."""

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file

from tramontane.engine.executor import LocalExecutor
from tramontane.errors import ConfigError
from tramontane.loading.loader import LoadRequest, load_text
from tramontane_deepseek.deepseek_v3 import DeepseekV3, DeepseekV3Config
from tramontane_testkit import ArchitectureContract
from tramontane_testkit.models import DEEPSEEK_V3, hf_model, save_hf

BASE = {**DEEPSEEK_V3, "routed_scaling_factor": 2.5}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 8.0,
    "original_max_position_embeddings": 32,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}


class TestDeepseekV3(ArchitectureContract):
    model_class = "DeepseekV3ForCausalLM"
    base: ClassVar = BASE
    cases: ClassVar = {
        "groups": {"num_hidden_layers": 3},
        "no groups, yarn": {"n_group": 1, "topk_group": 1, "rope_parameters": YARN},
        "weights as they are, no query latent": {"norm_topk_prob": False, "q_lora_rank": None},
        "halves rotated, biases": {"rope_interleave": False, "attention_bias": True},
    }
    gguf_architecture = "deepseek2"
    gguf_cases = ("groups", "no groups, yarn", "weights as they are, no query latent")
    llama_cpp_differs: ClassVar = {
        "weights as they are, no query latent": "llama.cpp knows models without one by 27 layers",
    }


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model to which the layer that predicts a second token is added."""
    model = hf_model("DeepseekV3ForCausalLM", **BASE)
    directory = save_hf(model, tmp_path_factory.mktemp("model"))
    tensors = load_file(directory / "model.safetensors")
    last = {k: v for k, v in tensors.items() if k.startswith("model.layers.1.")}
    tensors |= {k.replace("layers.1.", "layers.2."): v.clone() for k, v in last.items()}
    tensors |= {
        "model.layers.2.embed_tokens.weight": tensors["model.embed_tokens.weight"].clone(),
        "model.layers.2.enorm.weight": torch.ones(32),
        "model.layers.2.hnorm.weight": torch.ones(32),
        "model.layers.2.eh_proj.weight": torch.zeros(32, 64),
        "model.layers.2.shared_head.norm.weight": torch.ones(32),
        "model.layers.2.shared_head.head.weight": tensors["lm_head.weight"].clone(),
    }
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    return directory


def test_layers_that_predict_further_tokens_are_left_out(directory: Path) -> None:
    loaded = load_text(LoadRequest(model_id=str(directory), dtype="f32"))
    assert len(loaded.model.model.layers) == 2
    assert loaded.plan.weight_bytes == loaded.weight_bytes  # nor counted


def test_the_choice_of_experts_is_not_rounded(directory: Path) -> None:
    stored = load_file(directory / "model.safetensors")
    loaded = load_text(LoadRequest(model_id=str(directory), dtype="bf16"))
    gate = loaded.model.model.layers[1].mlp.gate
    for name in ("weight", "e_score_correction_bias"):
        assert torch.equal(getattr(gate, name), stored[f"model.layers.1.mlp.gate.{name}"])
    assert loaded.model.lm_head.weight.dtype == torch.bfloat16


def test_only_latents_are_planned_and_allocated(directory: Path) -> None:
    loaded = load_text(LoadRequest(model_id=str(directory), dtype="f32"))
    plan = loaded.plan
    numbers_a_token = 16 + 4  # kv_lora_rank, qk_rope_head_dim
    tokens = plan.num_blocks * plan.block_size
    assert plan.cache_bytes == tokens * numbers_a_token * 4 * 2
    executor = LocalExecutor(
        loaded.model,
        loaded.config,
        num_blocks=plan.num_blocks,
        block_size=plan.block_size,
        max_seqs=1,
        dtype=plan.cache_dtype,
        device="cpu",
    )
    assert executor.cache_nbytes == plan.cache_bytes


PUBLISHED: dict[str, Any] = {
    "vocab_size": 129280,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "max_position_embeddings": 163840,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 2048,
    "first_k_dense_replace": 3,
    "moe_layer_freq": 1,
    "n_group": 8,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "rope_theta": 10000,
    "rope_scaling": {
        "type": "yarn",
        "factor": 40,
        "original_max_position_embeddings": 4096,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    },
}
"""What ``config.json`` of DeepSeek-V3 says."""


def test_bytes_a_token_are_those_of_the_papers() -> None:
    """arXiv:2405.04434, table 1: 9/2 head sizes a layer; arXiv:2505.09343, table 1: 70.272 KB."""
    config = DeepseekV3Config.from_dict(PUBLISHED)
    specs = DeepseekV3.cache_specs(config)
    assert len(specs) == 61
    assert specs[0].bytes_per_token(torch.bfloat16) == 2 * 128 * 9 // 2
    assert sum(spec.bytes_per_token(torch.bfloat16) for spec in specs) == 70_272


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"scoring_func": "softmax"}, "scoring_func is 'softmax'"),
        ({"topk_method": "greedy"}, "topk_method is 'greedy'"),
        ({"n_group": 7}, "n_group is 7 and topk_group 4"),
        ({"topk_group": 9}, "n_group is 8 and topk_group 9"),
        ({"n_group": 256, "topk_group": 8}, "n_group is 256, which leaves no two of 256"),
        ({"n_group": 128, "topk_group": 2}, "chooses from 4 experts"),
        ({"num_key_value_heads": 8}, "num_key_value_heads is 8"),
        ({"kv_lora_rank": 0}, "kv_lora_rank is 0"),
        ({"kv_lora_rank": None}, "config.json lacks kv_lora_rank"),
    ],
)
def test_values_without_meaning_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DeepseekV3Config.from_dict({**PUBLISHED, **keys})
