"""Every architecture of the public enums, chosen by its member, serves a request."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tramontane import (
    Architecture,
    CompletionRequest,
    EmbeddingArchitecture,
    EmbeddingRequest,
    Runner,
    Which,
)
from tramontane_testkit.embedding_models import GEMMA, LAST, MEAN, NORMALIZE, QWEN, tiny_embedder
from tramontane_testkit.models import hf_model, save_hf

LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 12,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 12,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 1,
}
MAMBA: dict[str, Any] = {
    "layer_types": ["mamba", "attention"],
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 16,
}
REFERENCES: dict[str, tuple[str, dict[str, Any]]] = {
    "Mistral": ("Mistral", {}),
    "Gemma": ("Gemma", {"head_dim": 12}),
    "Mixtral": ("Mixtral", {"num_local_experts": 4}),
    "Llama": ("Llama", {}),
    "Phi2": ("Phi", {}),
    "Phi3": ("Phi3", {}),
    "Qwen2": ("Qwen2", {}),
    "Gemma2": ("Gemma2", {"head_dim": 12}),
    "GLM4": ("Glm4", {"head_dim": 16}),
    "Starcoder2": ("Starcoder2", {}),
    "Phi3_5MoE": ("Phimoe", {"num_local_experts": 4}),
    "DeepseekV2": ("DeepseekV2", LATENT),
    "DeepseekV3": ("DeepseekV3", {**LATENT, "n_group": 4, "topk_group": 2}),
    "Qwen3": ("Qwen3", {"head_dim": 8}),
    "Qwen3Moe": ("Qwen3Moe", {"num_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}),
    "SmolLm3": ("SmolLM3", {}),
    "GraniteMoeHybrid": ("GraniteMoeHybrid", {**MAMBA, "num_local_experts": 4}),
    "GptOss": ("GptOss", {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2}),
}
"""Member → transformers' class, without ``ForCausalLM``, and what its tiny config needs."""


@pytest.mark.parametrize("arch", Architecture, ids=lambda arch: arch.name)
def test_a_text_model_of_every_member(arch: Architecture, tmp_path: Path) -> None:
    reference, keys = REFERENCES[arch.name]
    directory = save_hf(hf_model(f"{reference}ForCausalLM", **keys), tmp_path)
    request = CompletionRequest(prompt="abc", max_tokens=6, temperature=0.0, ignore_eos=True)
    with Runner(which=Which.Plain(model_id=str(directory), arch=arch)) as runner:
        assert Architecture(runner.stats()["architecture"]) is arch
        response = runner.send_completion_request(request)
    assert response.usage.completion_tokens == 6


@pytest.mark.parametrize("arch", EmbeddingArchitecture, ids=lambda arch: arch.name)
def test_an_embedding_model_of_every_member(arch: EmbeddingArchitecture, tmp_path: Path) -> None:
    keys, pooling = {"EmbeddingGemma": (GEMMA, MEAN), "Qwen3Embedding": (QWEN, LAST)}[arch.name]
    directory = tiny_embedder(tmp_path, (pooling, NORMALIZE), **keys)
    with Runner(which=Which.Embedding(model_id=str(directory), arch=arch)) as runner:
        assert EmbeddingArchitecture(runner.stats()["architecture"]) is arch
        embeddings = runner.send_embedding_request(
            EmbeddingRequest(input=["superconductors", "graphene"], truncate_sequence=True)
        )
    assert [len(vector) for vector in embeddings] == [32, 32]
