"""Which type each tensor of a file gets: as llama.cpp's quantizer has it."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

import pytest

from tramontane.errors import ValidationError
from tramontane.loading.loader import LoadRequest
from tramontane.loading.stored import open_stored
from tramontane_gguf.checkpoint import GgufFormat
from tramontane_gguf.container import read
from tramontane_gguf.mixes import FILE_TYPES, ModelShape, file_type, tensor_type
from tramontane_gguf.writer import tensor_types
from tramontane_testkit.models import hf_model, save_hf, tiny_llama

WIDE = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 17}
FEW = {**WIDE, "num_hidden_layers": 9}
DEEPSEEK = {
    "num_key_value_heads": 4, "q_lora_rank": 256, "kv_lora_rank": 256, "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 32, "v_head_dim": 64, "n_routed_experts": 8, "n_shared_experts": 1,
    "num_experts_per_tok": 2, "moe_intermediate_size": 256, "first_k_dense_replace": 1,
    "n_group": 2, "topk_group": 1,
}  # fmt: skip
GRANITE = {
    "mamba_n_heads": 16, "mamba_d_head": 32, "mamba_d_state": 16, "shared_intermediate_size": 256,
    "layer_types": ["mamba", "attention", "mamba"] * 3, "num_key_value_heads": 1,
}  # fmt: skip
NOT_MIXED = ("F32", "F16", "BF16")
PLAIN = [name for name in FILE_TYPES if name not in (*NOT_MIXED, "Q2_K_S")]
DEEP = ["Q2_K", "Q3_K_M", "Q4_K_S", "Q4_K_M", "Q5_K_M"]
CASES: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "grouped": (
        "LlamaForCausalLM", {**WIDE, "num_attention_heads": 8, "num_key_value_heads": 2}, PLAIN,
    ),
    "multi-head, tied": (
        "LlamaForCausalLM", {**WIDE, "num_key_value_heads": 4, "tie_word_embeddings": True}, PLAIN,
    ),
    "odd width": ("LlamaForCausalLM", {"hidden_size": 96, "intermediate_size": 160}, PLAIN),
    "80 layers": (
        "LlamaForCausalLM", {"hidden_size": 256, "intermediate_size": 256,
                             "num_hidden_layers": 80, "num_key_value_heads": 1}, DEEP,
    ),
    "80 layers, multi-head": (
        "LlamaForCausalLM", {"hidden_size": 256, "intermediate_size": 256,
                             "num_hidden_layers": 80, "num_key_value_heads": 4}, ["Q3_K_M"],
    ),
    "80 layers of qwen2": (
        "Qwen2ForCausalLM", {"hidden_size": 256, "intermediate_size": 256,
                             "num_hidden_layers": 80, "num_key_value_heads": 4}, ["Q3_K_M"],
    ),
    "eight experts": ("MixtralForCausalLM", {**FEW, "num_local_experts": 8}, PLAIN),
    "six experts": ("MixtralForCausalLM", {**FEW, "num_local_experts": 6}, ["Q3_K_L", "Q4_K_M"]),
    "fused": ("Phi3ForCausalLM", WIDE, PLAIN),
    "gemma": ("GemmaForCausalLM", {**FEW, "head_dim": 64}, PLAIN),
    "gemma2": ("Gemma2ForCausalLM", {**FEW, "head_dim": 64, "query_pre_attn_scalar": 64}, DEEP),
    "qwen2": ("Qwen2ForCausalLM", WIDE, PLAIN),
    "deepseek2": ("DeepseekV3ForCausalLM", {**FEW, **DEEPSEEK}, PLAIN),
    "gpt-oss": (
        "GptOssForCausalLM",
        {**FEW, "head_dim": 64, "num_local_experts": 6, "num_experts_per_tok": 2,
         "sliding_window": 8, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
        PLAIN,
    ),
    "granitehybrid": (
        "GraniteMoeHybridForCausalLM",
        {**FEW, **GRANITE, "num_local_experts": 6, "num_experts_per_tok": 2}, PLAIN,
    ),
}  # fmt: skip
"""Model → class of transformers, config keys, and file types that are compared."""


def quantized_by_llama_cpp(
    source: Path, target: Path, number: int, widths: dict[str, int] | None = None
) -> dict[str, str]:
    """Types of the tensors of the file that llama.cpp makes of another; all importances are one
    where ``widths`` gives how many each tensor has."""
    package = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    parameters = package.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = number, 2
    if widths:
        ones = (ctypes.c_float * max(widths.values()))(*([1.0] * max(widths.values())))
        entries = (package.llama_model_imatrix_data * (len(widths) + 1))()
        for entry, (name, width) in zip(entries, widths.items(), strict=False):
            entry.name, entry.data, entry.size = name.encode(), ones, width
        parameters.imatrix = entries
    code = package.llama_model_quantize(
        os.fsencode(source), os.fsencode(target), ctypes.byref(parameters)
    )
    assert code == 0
    return {name: info.type.name for name, info in read(target).tensors.items()}


def full(directory: Path, path: Path) -> Path:
    with open_stored(LoadRequest(model_id=str(directory))) as model:
        GgufFormat().write(model, path, "F16")
    return path


@pytest.mark.peer
@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_tensors_have_the_types_that_llama_cpp_gives_them(case: str, tmp_path: Path) -> None:
    model_class, keys, kinds = CASES[case]
    directory = save_hf(hf_model(model_class, **keys), tmp_path / "hf")
    file = full(directory, tmp_path / "f16.gguf")
    for kind in kinds:
        theirs = quantized_by_llama_cpp(file, tmp_path / "theirs.gguf", FILE_TYPES[kind].number)
        with open_stored(LoadRequest(model_id=str(directory))) as model:
            ours = tensor_types(model, kind)
        assert ours == theirs, kind


@pytest.mark.peer
@pytest.mark.slow
def test_with_importances_too(tmp_path: Path) -> None:
    directory = tiny_llama(tmp_path / "hf", **{**WIDE, "num_key_value_heads": 1})
    file = full(directory, tmp_path / "f16.gguf")
    widths = {n: t.shape[-1] for n, t in read(file).tensors.items() if len(t.shape) == 2}
    for kind in ("Q2_K_S", "Q4_0", "Q5_0", "IQ4_XS", "Q4_K_M"):
        number = FILE_TYPES[kind].number
        theirs = quantized_by_llama_cpp(file, tmp_path / "theirs.gguf", number, widths)
        with open_stored(LoadRequest(model_id=str(directory))) as model:
            assert tensor_types(model, kind, weighted=True) == theirs, kind


def test_what_the_written_file_has_is_what_was_chosen(tmp_path: Path) -> None:
    directory = tiny_llama(tmp_path / "hf", hidden_size=256, intermediate_size=256)
    with open_stored(LoadRequest(model_id=str(directory))) as model:
        chosen = tensor_types(model, "Q3_K_M")
        GgufFormat().write(model, tmp_path / "m.gguf", "Q3_K_M")
    found = read(tmp_path / "m.gguf").tensors
    assert {name: info.type.name for name, info in found.items()} == chosen
    assert chosen["blk.0.attn_v.weight"] == "q5_k"
    assert chosen["output.weight"] == "q6_k"
    assert chosen["blk.0.attn_norm.weight"] == "f32"


def test_a_shared_value_head_is_worth_more_in_the_largest_models() -> None:
    def value_type(family: str, kv_heads: int, layers: int = 80, experts: int = 0) -> str:
        shape = ModelShape(
            family=family, num_layers=layers, num_heads=8, num_kv_heads=kv_heads,
            num_experts=experts, has_output=True, attention_layers=tuple(range(layers)),
        )  # fmt: skip
        found = tensor_type("blk.40.attn_v.weight", (256, 256), file_type("Q3_K_M"), shape)
        assert found is not None
        return found.name

    assert value_type("llama", 1) == value_type("qwen2", 8) == "q5_k"
    assert value_type("llama", 8) == value_type("qwen3", 1) == value_type("llama", 1, 79) == "q4_k"
    assert value_type("llama", 1, 32, experts=8) == "q8_0"


def test_the_coarsest_type_takes_statistics(tmp_path: Path) -> None:
    directory = tiny_llama(tmp_path / "hf")
    with (
        open_stored(LoadRequest(model_id=str(directory))) as model,
        pytest.raises(ValidationError, match=r"Q2_K_S needs an importance matrix \(--imatrix\)"),
    ):
        GgufFormat().write(model, tmp_path / "m.gguf", "Q2_K_S")
