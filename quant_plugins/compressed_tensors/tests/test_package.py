"""Compared with the compressed-tensors package."""

from __future__ import annotations

import warnings

import pytest
import torch

from tramontane.loading.loader import LoadRequest, load_text
from tramontane.nn import PackedLinear
from tramontane_compressed_tensors.reader import CompressedTensorsReader
from tramontane_testkit.models import tiny_llama


class Tensors(dict):
    def names(self):
        return list(self)

    def tensor(self, name):
        return self[name]


GROUP = {"strategy": "group", "group_size": 32}
CASES = [
    ("pack-quantized", {"num_bits": bits, "symmetric": symmetric, **GROUP})
    for bits in (2, 3, 4, 5, 8)
    for symmetric in (True, False)
] + [
    ("pack-quantized", {"num_bits": 4, "symmetric": False, "strategy": "channel"}),
    ("pack-quantized", {"num_bits": 4, "symmetric": False, "strategy": "tensor"}),
    ("int-quantized", {"num_bits": 8, "strategy": "channel"}),
    ("int-quantized", {"num_bits": 8, "symmetric": False, "strategy": "channel"}),
    ("naive-quantized", {"num_bits": 4, "strategy": "channel"}),
    ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "tensor"}),
    ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"}),
    ("naive-quantized", {"num_bits": 8, "type": "float", **GROUP}),
    (
        "float-quantized",
        {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [16, 32]},
    ),
]


@pytest.mark.peer
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("layout", "weights"), CASES)
def test_decodes_as_the_package(layout, weights, dtype):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        package = pytest.importorskip(
            "compressed_tensors", reason="compressed-tensors is not installed"
        )
        from compressed_tensors.compressors import BaseCompressor
        from compressed_tensors.quantization.utils import calculate_qparams

        scheme = package.quantization.QuantizationScheme(targets=["Linear"], weights=weights)
        torch.manual_seed(0)
        weight = torch.randn(48, 96, dtype=dtype)
        rows, columns = {
            "tensor": (48, 96),
            "channel": (1, 96),
            "group": (1, 32),
            "block": (16, 32),
        }[weights["strategy"]]
        tiles = weight.unflatten(0, (-1, rows)).unflatten(2, (-1, columns))
        scale, zero = calculate_qparams(tiles.amin((1, 3)), tiles.amax((1, 3)), scheme.weights)
        if weights["strategy"] == "tensor":
            scale, zero = scale.reshape(1), zero.reshape(1)
        compressor = BaseCompressor.get_value_from_registry(layout)
        parts = {"weight": weight, "weight_scale": scale, "weight_zero_point": zero}
        stored = compressor.compress(parts, scheme)
        # In float32, where nothing is rounded on the way back.
        exact = {**stored, "weight_scale": stored["weight_scale"].float()}
        theirs = compressor.decompress(exact, scheme)["weight"]
    settings = {"format": layout, "config_groups": {"g": scheme.model_dump(mode="json")}}
    checkpoint = Tensors({f"m.{name}": part for name, part in stored.items()})
    ours = CompressedTensorsReader().read_checkpoint(checkpoint, settings).tensor("m.weight")
    # Scales of 24 bits leave no room for the zero that is multiplied by them.
    slack = 0 if dtype is torch.bfloat16 or "type" in weights else 2e-5 * float(scale.max())
    torch.testing.assert_close(ours.dequantize(), theirs, rtol=0, atol=slack)
    assert float((theirs - weight.float()).abs().max()) < 2


W4 = {"num_bits": 4, "symmetric": False, **GROUP}
W8 = {"num_bits": 8, "strategy": "channel"}
A8 = {"num_bits": 8, "strategy": "token", "dynamic": True}


@pytest.mark.peer
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("groups", "formats"),
    [
        ({"g": {"targets": ["Linear"], "weights": W4}}, {"affine.4"}),
        ({"g": {"targets": ["Linear"], "weights": W8, "input_activations": A8}}, {"affine.8"}),
        (
            {
                "a": {"targets": ["re:.*self_attn"], "weights": W4},
                "b": {
                    "targets": ["Linear"],
                    "weights": {**W8, "type": "float"},
                    "input_activations": {**A8, "type": "float"},
                },
            },
            {"affine.4", "fp8.channel"},
        ),
    ],
    ids=["w4a16", "w8a8", "mixed"],
)
def test_a_model_that_the_package_saved(tmp_path, groups, formats):
    package = pytest.importorskip(
        "compressed_tensors", reason="compressed-tensors is not installed"
    )
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import apply_quantization_config
    from compressed_tensors.quantization.utils import calculate_qparams
    from transformers import AutoModelForCausalLM

    plain = tiny_llama(tmp_path / "plain", hidden_size=64, intermediate_size=96)
    path = tmp_path / "packed"
    theirs = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32)
    config = package.quantization.QuantizationConfig(config_groups=groups, ignore=["lm_head"])
    apply_quantization_config(theirs, config)
    for module in theirs.modules():
        if getattr(module, "quantization_scheme", None) is None:
            continue
        weights = module.quantization_scheme.weights
        columns = module.weight.shape[1] // module.weight_scale.shape[1]
        tiles = module.weight.unflatten(1, (-1, columns))
        scale, zero = calculate_qparams(tiles.amin(2), tiles.amax(2), weights)
        module.weight_scale.data, module.weight_zero_point.data = scale, zero
        module.quantization_status = package.quantization.QuantizationStatus.FROZEN
    compressor = ModelCompressor.from_pretrained_model(theirs)
    compressor.compress_model(theirs)
    theirs.save_pretrained(path)
    compressor.update_config(path)
    for file in plain.glob("tokenizer*"):
        (path / file.name).write_bytes(file.read_bytes())
    compressor.decompress_model(theirs)
    ours = load_text(LoadRequest(model_id=str(path), dtype="f32")).model
    packed = {n: m.packed for n, m in ours.named_modules() if isinstance(m, PackedLinear)}
    assert len(packed) == 14
    assert {weight.format for weight in packed.values()} == formats
    for name, weight in packed.items():
        expected = theirs.get_submodule(name).weight
        torch.testing.assert_close(weight.dequantize(), expected, rtol=0, atol=1e-5)
