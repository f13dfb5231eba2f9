"""Files written here: as llama.cpp's converter and quantizer would have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer as Backend
from tokenizers import models

from tramontane.errors import ConfigError, UnsupportedError, ValidationError
from tramontane.loading.loader import LoadRequest, load_text
from tramontane.loading.stored import open_stored
from tramontane.text.chat_template import find_chat_template
from tramontane.text.tokenizer import Tokenizer
from tramontane_gguf.checkpoint import GgufFormat
from tramontane_gguf.container import Container, read
from tramontane_gguf.export_tokenizer import tokenizer_keys
from tramontane_gguf.mixes import FILE_TYPES, file_type
from tramontane_testkit import llama_cpp
from tramontane_testkit.gguf_files import gguf_of
from tramontane_testkit.models import byte_tokenizer, hf_model, save_hf, tiny_llama

LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
}  # fmt: skip
LONGROPE = {
    "original_max_position_embeddings": 64,
    "rope_parameters": {
        "rope_type": "longrope", "rope_theta": 1000.0,
        "short_factor": [1.0, 1.2, 1.4, 1.6], "long_factor": [1.0, 2.7, 4.4, 6.1],
    },
}  # fmt: skip
MOE = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "norm_topk_prob": True,
}
YARN = {
    "rope_type": "yarn", "rope_theta": 50.0, "factor": 4.0, "beta_fast": 2.0, "beta_slow": 1.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
DEEPSEEK = {
    "num_key_value_heads": 4, "q_lora_rank": 12, "kv_lora_rank": 32, "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4, "v_head_dim": 12, "n_routed_experts": 8, "n_shared_experts": 1,
    "num_experts_per_tok": 3, "moe_intermediate_size": 24, "first_k_dense_replace": 1,
}  # fmt: skip
GRANITE = {
    "embedding_multiplier": 3.0, "attention_multiplier": 0.2, "residual_multiplier": 0.4,
    "logits_scaling": 1.5, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 16,
    "num_hidden_layers": 3, "layer_types": ["mamba", "attention", "mamba"],
}  # fmt: skip
DENSE = {"num_local_experts": 0, "num_experts_per_tok": 0, "shared_intermediate_size": 48}
ROUTED = {"num_local_experts": 6, "num_experts_per_tok": 2, "shared_intermediate_size": 40}
ATTENDS = {"layer_types": ["attention"] * 3, "position_embedding_type": "rope"}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "llama", {"attention_bias": True}),
    "llama tied": ("LlamaForCausalLM", "llama", {"tie_word_embeddings": True}),
    "mistral": ("MistralForCausalLM", "llama", {"sliding_window": None, "head_dim": 8}),
    "mixtral": (
        "MixtralForCausalLM", "llama", {"num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "smollm3": ("SmolLM3ForCausalLM", "smollm3", {"num_hidden_layers": 4}),
    "qwen2": ("Qwen2ForCausalLM", "qwen2", {}),
    "qwen3": ("Qwen3ForCausalLM", "qwen3", {"head_dim": 16}),
    "qwen3moe": ("Qwen3MoeForCausalLM", "qwen3moe", {"head_dim": 16, **MOE}),
    "phi2": (
        "PhiForCausalLM", "phi2",
        {"num_key_value_heads": 4, "rope_parameters": {
            "rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
    ),
    "phi3": ("Phi3ForCausalLM", "phi3", {}),
    "phi3 longrope": ("Phi3ForCausalLM", "phi3", LONGROPE),
    "starcoder2": ("Starcoder2ForCausalLM", "starcoder2", {"sliding_window": None}),
    "gemma": ("GemmaForCausalLM", "gemma", {"head_dim": 12}),
    "gemma2": ("Gemma2ForCausalLM", "gemma2", {"head_dim": 12, "query_pre_attn_scalar": 12}),
    "gemma3": ("Gemma3ForCausalLM", "gemma3", {"head_dim": 12, "query_pre_attn_scalar": 12}),
    "glm4": ("Glm4ForCausalLM", "glm4", {"head_dim": 16}),
    "phimoe": ("PhimoeForCausalLM", "phimoe", {"num_local_experts": 6, "lm_head_bias": True}),
    "deepseek2, first generation": (
        "DeepseekV2ForCausalLM", "deepseek2", {
            **DEEPSEEK, "q_lora_rank": None, "n_group": None, "topk_group": None,
            "rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 0.7}},
    ),
    "deepseek2, second generation": (
        "DeepseekV3ForCausalLM", "deepseek2", {**DEEPSEEK, "n_group": 4, "topk_group": 2},
    ),
    "granitehybrid": (
        "GraniteMoeHybridForCausalLM", "granitehybrid",
        {**GRANITE, **ROUTED, "intermediate_size": 24, "tie_word_embeddings": True},
    ),
    "granitehybrid, dense": (
        "GraniteMoeHybridForCausalLM", "granitehybrid",
        {**GRANITE, **DENSE, "position_embedding_type": "rope"},
    ),
    "granite": (
        "GraniteMoeHybridForCausalLM", "granite", {**GRANITE, **DENSE, **ATTENDS},
    ),
    "granitemoe": (
        "GraniteMoeHybridForCausalLM", "granitemoe",
        {**GRANITE, **ROUTED, **ATTENDS, "intermediate_size": 24},
    ),
    "gpt-oss": (
        "GptOssForCausalLM", "gpt-oss", {
            "head_dim": 8, "num_local_experts": 6, "num_experts_per_tok": 2,
            "sliding_window": 8, "rope_parameters": {**YARN, "truncate": False}},
    ),
}  # fmt: skip


def write(
    source: Path, path: Path, type_name: str, files: list[str] | None = None, **o: Any
) -> Path:
    with open_stored(LoadRequest(model_id=str(source), files=files)) as model:
        GgufFormat().write(model, path, type_name, **o)
    return path


def values(file: Container) -> dict[str, torch.Tensor]:
    return {n: file.bytes_of(t).view(t.type.dtype).view(t.shape) for n, t in file.tensors.items()}


def same(ours: Any, theirs: Any) -> bool:
    if isinstance(theirs, float):
        return bool(np.isclose(ours, theirs, rtol=1e-6))
    if isinstance(theirs, np.ndarray):
        return bool(np.array_equal(ours, theirs))
    return bool(ours == theirs)


@pytest.mark.parametrize("case", CASES)
def test_a_converted_model_is_what_the_converter_makes(case: str, tmp_path: Path) -> None:
    model_class, architecture, keys = CASES[case]
    directory = save_hf(hf_model(model_class, **keys), tmp_path / "hf")
    theirs = read(gguf_of(directory, tmp_path / "theirs.gguf", architecture))
    ours = read(write(directory, tmp_path / "ours.gguf", "F32"))
    assert ours.metadata["general.architecture"] == architecture
    # What ours says beyond theirs is checked by the readers below.
    differing = {
        key: (ours.metadata.get(key), value)
        for key, value in theirs.metadata.items()
        if not same(ours.metadata.get(key), value)
    }
    assert not differing
    expected, found = values(theirs), values(ours)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        if name.endswith("ssm_a"):  # numpy's exponential is not torch's to the last bit
            torch.testing.assert_close(found[name], tensor)
        else:
            assert torch.equal(found[name], tensor), name


def test_frequencies_of_llama_3_come_back(tmp_path: Path) -> None:
    directory = tiny_llama(tmp_path / "hf", rope_parameters=LLAMA3)
    file = write(directory, tmp_path / "m.gguf", "F16")
    config = load_text(LoadRequest(model_id=str(tmp_path), files=[file.name])).config
    original = load_text(LoadRequest(model_id=str(directory))).config
    assert config.rope_parameters == original.rope_parameters


def test_a_file_is_written_from_a_file(tmp_path: Path) -> None:
    directory = tiny_llama(tmp_path / "hf")
    write(directory, tmp_path / "full.gguf", "F32")
    again = write(tmp_path, tmp_path / "q8.gguf", "Q8_0", ["full.gguf"])
    direct = write(directory, tmp_path / "direct.gguf", "Q8_0")
    first, second = read(again), read(direct)
    assert {k for k in first.metadata if not same(first.metadata[k], second.metadata[k])} == set()
    for name, info in second.tensors.items():
        assert torch.equal(first.bytes_of(first.tensors[name]), second.bytes_of(info)), name


def test_the_demo_model_answers_alike_from_its_file(tmp_path: Path) -> None:
    from tramontane import Runner, Which

    package = pytest.importorskip("tramontane_demo_model")
    source = Path(package.__file__).parent / "model"
    file = write(source, tmp_path / "demo.gguf", "Q6_K")
    request = {"messages": "What is the capital of France?", "max_tokens": 16, "temperature": 0.0}
    answers = []
    for which in (Which.Plain(str(source)), Which.GGUF(str(tmp_path), file.name)):
        with Runner(which) as runner:
            answers.append(runner.send_chat_completion_request(request).choices[0].message.content)
    assert answers[0] == answers[1]


# What may go wrong ----------------------------------------------------------------------------


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    directory = tiny_llama(tmp_path / "hf")
    target = tmp_path / "out" / "m.gguf"
    target.parent.mkdir()
    target.write_bytes(b"the old file")

    def interrupt(done: int, total: int, name: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(directory, target, "Q8_0", on_progress=interrupt)
    assert [p.name for p in target.parent.iterdir()] == ["m.gguf"]
    assert target.read_bytes() == b"the old file"
    write(directory, target, "Q8_0")
    assert read(target).metadata["general.file_type"] == 7


def test_what_cannot_be_written(tmp_path: Path) -> None:
    directory = tiny_llama(tmp_path / "hf")
    with pytest.raises(ValidationError, match=r"'Q9_K' is no file type .* Q4_K_M"):
        write(directory, tmp_path / "m.gguf", "Q9_K")
    config = directory / "config.json"
    text = config.read_text("utf-8")
    config.write_text(text.replace("LlamaForCausalLM", "FalconForCausalLM"), "utf-8")
    with pytest.raises(UnsupportedError, match="FalconForCausalLM cannot be written as GGUF"):
        write(directory, tmp_path / "m.gguf", "F16")
    words = Tokenizer(Backend(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]")))
    with pytest.raises(ConfigError, match="WordPiece tokenizer cannot be written"):
        tokenizer_keys(words, tmp_path, 2, "llama")
    with pytest.raises(ConfigError, match="has id 260, the model 100"):
        tokenizer_keys(Tokenizer(byte_tokenizer()), tmp_path, 100, "llama")
    assert not list(tmp_path.glob("*.gguf*"))


def test_a_vocabulary_is_filled_up(tmp_path: Path) -> None:
    keys = tokenizer_keys(Tokenizer(byte_tokenizer(), bos_token="<s>"), tmp_path, 264, "llama")
    assert keys["tokens"][-2:] == ["[PAD262]", "[PAD263]"]
    assert keys["token_type"][-4:] == [3, 5, 5, 5]
    assert keys["bos_token_id"] == 257


def test_short_names_mean_the_usual_mixture() -> None:
    assert file_type("q4k") is file_type("Q4_K") is FILE_TYPES["Q4_K_M"]
    assert file_type(" q8_0 ").number == 7


# Beside llama.cpp ----------------------------------------------------------------------------


@pytest.mark.peer
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Q4_K_M", "Q2_K", "Q3_K_M", "Q5_K_S", "Q6_K", "Q8_0", "IQ4_XS"])
def test_llama_cpp_says_the_same_from_our_file(kind: str, tmp_path: Path) -> None:
    from tramontane import Runner, Which

    package = pytest.importorskip("tramontane_demo_model")
    source = Path(package.__file__).parent / "model"
    file = write(source, tmp_path / "demo.gguf", kind)
    tokenizer = Tokenizer.from_files(source)
    template = find_chat_template(source, special_tokens=tokenizer.special_tokens)
    text = template.render([{"role": "user", "content": "What is the capital of France?"}])
    expected = llama_cpp.greedy(file, tokenizer.encode(text), 10)
    with Runner(Which.GGUF(str(tmp_path), file.name)) as runner:
        request = {"prompt": text, "max_tokens": 10, "temperature": 0.0, "ignore_eos": True}
        answer = runner.send_completion_request(request).choices[0].text
    assert "Paris" in answer or kind == "Q2_K"
    assert answer == tokenizer.decode(expected)


@pytest.mark.peer
@pytest.mark.slow
def test_llama_cpp_cuts_text_as_the_tokenizer_does(tmp_path: Path, data: Any) -> None:
    package = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    demo = pytest.importorskip("tramontane_demo_model")
    story = "Once upon a time, in 2024, Lily's cat said: 'hi'  and  ran"
    sources = {
        # This vocabulary has no byte tokens, for which llama.cpp ends the process.
        data("models", "tinystories-656k"): story,
        Path(demo.__file__).parent / "model": story + " naïve 漢字 🙂\n\naway.",
    }
    for source, text in sources.items():
        file = write(source, tmp_path / "m.gguf", "Q8_0")
        model = package.Llama(str(file), n_ctx=64, verbose=False)
        theirs = model.tokenize(text.encode(), add_bos=False, special=True)
        model.close()
        assert theirs == Tokenizer.from_files(source).encode(text, add_special_tokens=False)
