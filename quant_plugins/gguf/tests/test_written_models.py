"""Models written to GGUF answer as before: here, and in llama.cpp."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tramontane.errors import ConfigError
from tramontane.loading.loader import LoadRequest, load_text
from tramontane.loading.stored import open_stored
from tramontane_gguf.checkpoint import GgufFormat
from tramontane_testkit import Stepper, llama_cpp
from tramontane_testkit.models import hf_model, save_hf

PROMPT = [7 * i % 250 for i in range(40)]
WIDE = {"hidden_size": 64, "intermediate_size": 96}
DEEPSEEK = {
    "num_key_value_heads": 4, "kv_lora_rank": 32, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16,
    "v_head_dim": 32, "n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 3,
    "moe_intermediate_size": 32, "first_k_dense_replace": 1,
}  # fmt: skip
GRANITE = {
    "embedding_multiplier": 3.0, "attention_multiplier": 0.2, "residual_multiplier": 0.4,
    "logits_scaling": 1.5, "mamba_n_heads": 16, "mamba_d_head": 8, "mamba_d_state": 16,
    "shared_intermediate_size": 64,
}  # fmt: skip
MIXED = {"num_hidden_layers": 3, "layer_types": ["mamba", "attention", "mamba"]}
DENSE = {"num_local_experts": 0, "num_experts_per_tok": 0}
ROUTED = {"num_local_experts": 6, "num_experts_per_tok": 2}
MODELS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {}),
    "mixtral": ("MixtralForCausalLM", ROUTED),
    "smollm3": ("SmolLM3ForCausalLM", {"num_hidden_layers": 4}),
    "qwen2": ("Qwen2ForCausalLM", {}),
    "qwen3": ("Qwen3ForCausalLM", {"head_dim": 16}),
    "qwen3moe": (
        "Qwen3MoeForCausalLM",
        {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
         "head_dim": 16, "norm_topk_prob": True},
    ),
    "phi2": ("PhiForCausalLM", {"num_key_value_heads": 4}),
    "phi3": ("Phi3ForCausalLM", {}),
    "phimoe": ("PhimoeForCausalLM", ROUTED),
    "starcoder2": ("Starcoder2ForCausalLM", {"sliding_window": None}),
    "gemma": ("GemmaForCausalLM", {"head_dim": 16}),
    "gemma2": ("Gemma2ForCausalLM", {"head_dim": 16, "query_pre_attn_scalar": 16}),
    "gemma3": (
        "Gemma3ForCausalLM", {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8},
    ),
    "glm4": ("Glm4ForCausalLM", {"head_dim": 16}),
    "deepseek2, first generation": (
        "DeepseekV2ForCausalLM", {**DEEPSEEK, "q_lora_rank": 32, "topk_method": "greedy"},
    ),
    "deepseek2, second generation": (
        "DeepseekV3ForCausalLM", {**DEEPSEEK, "q_lora_rank": 32, "n_group": 4, "topk_group": 2},
    ),
    "granitehybrid": (
        "GraniteMoeHybridForCausalLM", {**GRANITE, **MIXED, **ROUTED, "intermediate_size": 32},
    ),
    "granitehybrid, dense": ("GraniteMoeHybridForCausalLM", {**GRANITE, **MIXED, **DENSE}),
    "granite": (
        "GraniteMoeHybridForCausalLM",
        {**GRANITE, **DENSE, "layer_types": ["attention"] * 2, "position_embedding_type": "rope"},
    ),
    "granitemoe": (
        "GraniteMoeHybridForCausalLM",
        {**GRANITE, **ROUTED, "layer_types": ["attention"] * 2, "position_embedding_type": "rope",
         "intermediate_size": 32},
    ),
    "gpt-oss": (
        "GptOssForCausalLM",
        {**ROUTED, "head_dim": 16, "sliding_window": 8, "rope_parameters": {
            "rope_type": "default", "rope_theta": 1e4}},
    ),
}  # fmt: skip
"""Case → class of transformers, and config keys."""

OTHERS = {
    "phimoe": "llama.cpp weighs experts by a plain softmax instead of SparseMixer",
}
"""Case → why llama.cpp answers otherwise."""


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model_class, keys = MODELS[request.param]
    # The folder's name becomes the model's, by which llama.cpp knows the special tokens of some.
    place = tmp_path_factory.mktemp("models") / request.param / "model"
    return save_hf(hf_model(model_class, **{**WIDE, **keys}), place)


def written(directory: Path, file: Path, type_name: str) -> Path:
    with open_stored(LoadRequest(model_id=str(directory))) as stored:
        GgufFormat().write(stored, file, type_name)
    return file


def stepper(directory: Path, file: Path | None = None) -> Stepper:
    files = None if file is None else [file.name]
    loaded = load_text(LoadRequest(model_id=str(directory), files=files, dtype="f32"))
    found = Stepper(loaded.model, loaded.config)
    found.add("a", PROMPT)
    return found


def logits(directory: Path, file: Path | None = None) -> Tensor:
    return stepper(directory, file).finish("a")


def test_logits_are_those_of_the_model(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Native kernels round activations to int8, which this is not about.
    monkeypatch.setenv("TRAMONTANE_KERNELS", "reference")
    expected = logits(model)
    plain = logits(tmp_path, written(model, tmp_path / "f32.gguf", "F32"))
    torch.testing.assert_close(plain, expected, rtol=1e-4, atol=1e-4)
    packed = logits(tmp_path, written(model, tmp_path / "q8.gguf", "Q8_0"))
    assert not torch.equal(packed, expected)
    # A token near the border between two experts takes the other; rows in a wrong order give 1.4.
    assert float((packed - expected).norm() / expected.norm()) < 0.2


@pytest.mark.peer
@pytest.mark.slow
def test_llama_cpp_answers_alike(model: Path, tmp_path: Path) -> None:
    if model.parent.name in OTHERS:
        pytest.skip(OTHERS[model.parent.name])
    file = written(model, tmp_path / "f32.gguf", "F32")
    assert stepper(tmp_path, file).greedy("a", 32) == llama_cpp.greedy(file, PROMPT, 32)


UNSAYABLE: Mapping[str, tuple[str, dict[str, Any], str]] = {
    "gpt-oss": ("swiglu_limit is 0.5; it would be read as 7.0", {"swiglu_limit": 0.5}, "gpt-oss"),
    "qwen3moe": (
        "norm_topk_prob is False; it would be read as True", {"norm_topk_prob": False}, "qwen3moe",
    ),
    "gemma3": ("layer_types is", {"layer_types": ["full_attention"] * 2}, "gemma3"),
    "granitehybrid": ("time_step_limit is", {"time_step_limit": [0.0, 5.0]}, "granitehybrid"),
    "deepseek2, first generation": (
        "rope_parameters is", {"rope_parameters": {
            "rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "mscale": 0.5,
            "mscale_all_dim": 1.2, "original_max_position_embeddings": 32}}, "deepseek2",
    ),
}  # fmt: skip
"""Case → what the message says, the keys that make it so, and the family."""


@pytest.mark.parametrize("case", UNSAYABLE)
def test_what_a_file_cannot_say_is_an_error(case: str, tmp_path: Path) -> None:
    message, changes, family = UNSAYABLE[case]
    model_class, keys = MODELS[case]
    directory = save_hf(hf_model(model_class, **{**WIDE, **keys, **changes}), tmp_path / "hf")
    with pytest.raises(ConfigError, match=f"family {family} cannot say that {re.escape(message)}"):
        written(directory, tmp_path / "m.gguf", "F16")
    assert not list(tmp_path.glob("*.gguf"))


def test_a_window_that_llama_files_have_no_word_for_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = save_hf(hf_model("MistralForCausalLM", sliding_window=16), tmp_path / "hf")
    written(directory, tmp_path / "m.gguf", "F16")
    assert "a text longer than its 16 tokens will be read otherwise" in caplog.text
