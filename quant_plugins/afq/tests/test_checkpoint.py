"""Checkpoints as MLX publishes them."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tramontane.errors import CheckpointError, ConfigError
from tramontane.loading.loader import LoadRequest, load_text
from tramontane.nn import PackedEmbedding, PackedLinear
from tramontane_afq.quantizer import AfqQuantizer
from tramontane_testkit.models import tiny_llama


@pytest.fixture
def model(tmp_path):
    """A model in which linears and the embedding are packed, and what they decode to."""
    path = tiny_llama(tmp_path, hidden_size=64, intermediate_size=128)
    tensors = load_file(path / "model.safetensors")
    afq, plain = AfqQuantizer(), {}
    for name in [n for n, t in tensors.items() if t.dim() == 2]:
        packed = afq.quantize(tensors.pop(name), "afq8" if "down" in name else "afq4")
        parts, module = afq.serialize(packed), name.removesuffix(".weight")
        tensors |= {f"{module}.{p}": parts[p] for p in ("weight", "scales", "biases")}
        plain[name] = packed.dequantize()
    save_file(tensors, path / "model.safetensors")
    config = json.loads((path / "config.json").read_text())
    eight = {"bits": 8, "group_size": 64}
    config["quantization"] = {"group_size": 64, "bits": 4} | {
        f"model.layers.{i}.mlp.down_proj": eight for i in range(2)
    }
    (path / "config.json").write_text(json.dumps(config))
    return path, plain


def load(path):
    return load_text(LoadRequest(model_id=str(path), dtype="f32")).model


def change(path, **changes):
    config = json.loads((path / "config.json").read_text())
    config["quantization"] |= changes
    (path / "config.json").write_text(json.dumps(config))


def test_a_model_stays_packed(model):
    path, plain = model
    loaded = load(path)
    assert isinstance(loaded.model.embed_tokens, PackedEmbedding)
    for name, module in loaded.named_modules():
        if isinstance(module, PackedLinear) and f"{name}.weight" in plain:
            assert torch.equal(module.packed.dequantize(), plain[f"{name}.weight"])
    down = loaded.model.layers[1].mlp.down_proj
    assert down.packed.format == "affine.8"
    assert loaded.model.layers[1].mlp.up_proj.packed.format == "affine.4"


def test_settings_and_parts_that_do_not_fit(model):
    path, _ = model
    for changes, error, match in (
        ({"mode": "mxfp4"}, ConfigError, "mode 'mxfp4'"),
        ({"mode": "affine", "bits": 7}, ConfigError, "bits of .* is 7"),
        ({"bits": 8}, CheckpointError, "by the configuration"),
    ):
        change(path, **changes)
        with pytest.raises(error, match=match):
            load(path)
    tensors = load_file(path / "model.safetensors")
    del tensors["model.layers.0.mlp.up_proj.biases"]
    save_file(tensors, path / "model.safetensors")
    change(path, bits=4)
    with pytest.raises(CheckpointError, match=r"up_proj\.scales' but not .*up_proj\.biases"):
        load(path)
