"""Checkpoints as the hqq package and transformers store them."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tramontane.errors import CheckpointError
from tramontane.loading.loader import LoadRequest, load_text
from tramontane.nn import PackedLinear
from tramontane_hqq.quantizer import HqqQuantizer
from tramontane_testkit.models import tiny_llama


def encoded(value):
    """A setting as ``HQQLinear`` stores it in safetensors."""
    if isinstance(value, str):
        return torch.tensor([ord(c) for c in value], dtype=torch.uint8)
    if isinstance(value, bool):
        return torch.tensor(int(value), dtype=torch.uint8)
    return torch.tensor(value, dtype=torch.int32)


@pytest.fixture
def model(tmp_path):
    """A model whose layers are packed, one of them viewed as floats, and what they decode to."""
    path = tiny_llama(tmp_path, hidden_size=64, intermediate_size=128)
    tensors = load_file(path / "model.safetensors")
    hqq, plain = HqqQuantizer(), {}
    for name in [n for n in tensors if n.startswith("model.layers") and "norm" not in n]:
        packed = hqq.quantize(tensors.pop(name), "hqq4")
        parts, module = hqq.serialize(packed), name.removesuffix(".weight")
        as_float = "up_proj" in name
        settings = {
            "nbits": 4, "group_size": 64, "shape": list(packed.shape), "axis": 0,
            "packing": "4bit_u8", "unpack_view_dtype": "torch.uint8", "view_as_float": as_float,
            "quant_scale": False, "quant_zero": False, "compute_dtype": "torch.float32",
            "offload_meta": False, "encoded_state_dict": True, "stores_quant_config": True,
            "channel_wise": True, "optimize": True, "round_zero": False,
        }  # fmt: skip
        tensors |= {f"{module}.{key}": encoded(value) for key, value in settings.items()}
        codes = parts["weight"]
        tensors[f"{module}.W_q"] = codes.view(torch.float32) if as_float else codes
        tensors[f"{module}.scale"], tensors[f"{module}.zero"] = parts["scales"], parts["zeros"]
        plain[name] = packed.dequantize()
    save_file(tensors, path / "model.safetensors")
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "hqq", "skip_modules": ["lm_head"]}
    (path / "config.json").write_text(json.dumps(config))
    return path, plain


def test_a_model_stays_packed(model):
    path, plain = model
    loaded = load_text(LoadRequest(model_id=str(path), dtype="f32")).model
    seen = {
        f"{name}.weight": module.packed
        for name, module in loaded.named_modules()
        if isinstance(module, PackedLinear)
    }
    assert seen.keys() == plain.keys()
    for name, packed in seen.items():
        assert packed.format == "hqq.4"
        assert torch.equal(packed.dequantize(), plain[name])


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("scale", None, "but not .*scale"),
        ("nbits", torch.tensor(5), "nbits is 5"),
        ("nbits", torch.tensor([4, 4]), "one whole number"),
        ("shape", torch.tensor([64, 65]), "do not divide|takes codes"),
        ("shape", torch.tensor([128, 64]), "takes codes"),
        ("axis", torch.tensor(1), "axis 1"),
        ("zero", torch.ones(2, 2), "do not belong together"),
    ],
)
def test_parts_that_do_not_fit(model, name, value, match):
    path, _ = model
    tensors = load_file(path / "model.safetensors")
    tensors.pop(f"model.layers.0.self_attn.q_proj.{name}")
    if value is not None:
        tensors[f"model.layers.0.self_attn.q_proj.{name}"] = value
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(CheckpointError, match=match):
        load_text(LoadRequest(model_id=str(path), dtype="f32"))
