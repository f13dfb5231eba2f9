"""Generation 0: numbers become names, for every way an architecture is laid out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tramontane.errors import CheckpointError, UnsupportedError
from tramontane.loading.loader import LoadRequest, load_text
from tramontane_testkit.models import hf_model, save_hf, tiny_llama
from tramontane_uqff.order import layer_names

from .gen0 import convert, gguf_blob, put_back, save_blobs  # noqa: TID252

SHAPES = {"hidden_size": 64, "intermediate_size": 64}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}


def load(directory: Path, *files: str) -> Any:
    request = LoadRequest(model_id=str(directory), files=files or ("q8_0-0.uqff",), format="uqff")
    return load_text(request)


def keys_of(directory: Path, count: int) -> list[str]:
    config = json.loads((directory / "config.json").read_text())
    return layer_names(config, count, prefix="model.", where="test")


@pytest.mark.parametrize(
    ("name", "count", "shards", "settings"),
    [
        ("LlamaForCausalLM", 15, 3, {"tie_word_embeddings": True}),
        ("Qwen2ForCausalLM", 15, 1, {}),
        ("Phi3ForCausalLM", 9, 1, {"pad_token_id": 0}),
        ("PhiForCausalLM", 13, 1, {}),
        ("Starcoder2ForCausalLM", 13, 1, {}),
        ("MixtralForCausalLM", 35, 1, {"num_local_experts": 4, "num_experts_per_tok": 2}),
        ("Qwen3MoeForCausalLM", 15, 1, MOE),
    ],
)
def test_layers_get_their_names(
    name: str, count: int, shards: int, settings: dict[str, Any], tmp_path: Path
) -> None:
    hf = hf_model(name, **SHAPES, **settings)
    directory = save_hf(hf, tmp_path / "model")
    plain = shutil.copytree(directory, tmp_path / "plain")
    values = convert(directory, keys_of(directory, count), shards=shards)
    put_back(plain, values)
    expected = dict(load_text(LoadRequest(model_id=str(plain))).model.named_modules())
    packed = 0
    for module_name, module in load(directory).model.named_modules():
        own = expected[module_name]
        if hasattr(module, "packed"):
            packed += 1
            # A tied head is stored once more, as values of its own.
            value = values["lm_head"] if module_name == "lm_head" else own.weight
            assert torch.equal(module.packed.dequantize(), value), module_name
        for leaf, tensor in module.named_parameters(recurse=False):
            assert torch.equal(tensor, getattr(own, leaf)), (module_name, leaf)
    assert packed >= min(count, 13)


def test_a_tied_head_that_is_stored_apart_is_used_as_stored(tmp_path: Path) -> None:
    directory = tiny_llama(tmp_path / "tied", tie_word_embeddings=True, **SHAPES)
    values = convert(directory, keys_of(directory, 15))
    model = load(directory).model
    assert torch.equal(model.lm_head.packed.dequantize(), values["lm_head"])
    assert not hasattr(model.model.embed_tokens, "packed")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 0x300}, ["q8_0-0.uqff", "layer 0 (lm_head)", "0.3.0"]),
        ({"shape": (64, 64)}, ["q8_0-0.uqff", "layer 0 (lm_head)"]),
        ({"dtype": 77}, ["q8_0-0.uqff", "layer 0 (lm_head)", "77"]),
    ],
)
def test_a_damaged_blob_is_named(change: dict[str, Any], words: list[str], tmp_path: Path) -> None:
    directory = tiny_llama(tmp_path / "model", **SHAPES)
    convert(directory, keys_of(directory, 15))
    blobs = {int(k): v.numpy().tobytes() for k, v in load_file(directory / "q8_0-0.uqff").items()}
    parts: dict[str, Any] = {
        "data": torch.zeros(34, dtype=torch.uint8),
        "dtype": 8,
        "shape": (1, 32),
    }
    version = change.pop("version", 0x200)
    blobs[0] = gguf_blob(parts | change, version=version)
    save_blobs(directory / "q8_0-0.uqff", blobs)
    with pytest.raises(CheckpointError) as caught:
        load(directory)
    assert all(word in str(caught.value) for word in words), caught.value


def test_what_does_not_make_a_model_is_refused(tmp_path: Path) -> None:
    directory = tiny_llama(tmp_path / "model", **SHAPES)
    convert(directory, keys_of(directory, 15), shards=3)
    (directory / "q8_0-1.uqff").unlink()
    with pytest.raises(CheckpointError, match=r"q8_0-1\.uqff"):
        load(directory)
    (directory / "q8_0-2.uqff").unlink()
    with pytest.raises(CheckpointError, match="5 layers"):
        load(directory)
    config = {"architectures": ["OtherForCausalLM"], "num_hidden_layers": 1}
    with pytest.raises(UnsupportedError, match="OtherForCausalLM"):
        layer_names(config, 8, prefix="model.", where="x.uqff")
