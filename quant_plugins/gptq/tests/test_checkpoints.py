"""Checkpoints that are packed here bit by bit, as the formats are described, and opened."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tramontane.errors import CheckpointError, ConfigError
from tramontane.loading.loader import LoadRequest, load_text
from tramontane.nn import PackedLinear
from tramontane_gptq.awq import AwqReader
from tramontane_gptq.gptq import GptqReader
from tramontane_testkit.models import tiny_llama

GROUP = 32


def stream(codes, bits):
    """Numbers as one little-endian stream in 32-bit words."""
    whole = sum(int(code) << (index * bits) for index, code in enumerate(codes))
    data = whole.to_bytes(len(codes) * bits // 8, "little")
    return np.frombuffer(data, dtype="<i4")


def gptq_parts(weight, bits, *, order=None, less_one=True):
    """Parts of a checkpoint, and what they mean, for a weight [out, in]."""
    out, columns = weight.shape
    group_of = np.arange(columns) // GROUP
    if order is not None:
        group_of = group_of[np.argsort(order)]
    groups = columns // GROUP
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 1 << bits, (columns, out))
    zeros = rng.integers(0, 1 << bits, (groups, out))
    scales = rng.uniform(0.01, 0.02, (groups, out)).astype(np.float16)
    stored = (zeros - less_one) % (1 << bits)
    parts = {
        "qweight": np.stack([stream(column, bits) for column in codes.T], 1),
        "qzeros": np.stack([stream(row, bits) for row in stored]),
        "scales": scales,
        "g_idx": group_of.astype(np.int32),
    }
    plain = (codes - zeros[group_of]) * scales.astype(np.float32)[group_of]
    return parts, np.ascontiguousarray(plain.T, dtype=np.float32)


def awq_parts(weight, bits=4):
    out, columns = weight.shape
    groups = columns // GROUP
    rng = np.random.default_rng(1)
    codes, zeros = rng.integers(0, 16, (columns, out)), rng.integers(0, 16, (groups, out))
    scales = rng.uniform(0.01, 0.02, (groups, out)).astype(np.float16)

    def words(values):
        result = np.zeros((values.shape[0], out // 8), dtype=np.int64)
        for place, output in enumerate([0, 2, 4, 6, 1, 3, 5, 7]):
            result |= values[:, output::8] << (4 * place)
        return result.astype(np.uint32).view(np.int32)

    group_of = np.arange(columns) // GROUP
    plain = (codes - zeros[group_of]) * scales.astype(np.float32)[group_of]
    parts = {"qweight": words(codes), "qzeros": words(zeros), "scales": scales}
    return parts, np.ascontiguousarray(plain.T, dtype=np.float32)


@pytest.fixture
def model(tmp_path):
    """Makes two directories of one model: packed layers, and the same in plain numbers."""

    def make(settings, parts_of):
        path = tiny_llama(tmp_path / "packed", hidden_size=64, intermediate_size=128)
        packed = load_file(path / "model.safetensors")
        plain = dict(packed)
        for name in [n for n in packed if n.startswith("model.layers") and "norm" not in n]:
            parts, plain_weight = parts_of(packed.pop(name))
            module = name.removesuffix(".weight")
            packed |= {f"{module}.{k}": torch.from_numpy(v.copy()) for k, v in parts.items()}
            plain[name] = torch.from_numpy(plain_weight)
        other = tmp_path / "plain"
        other.mkdir()
        for file in path.iterdir():
            (other / file.name).write_bytes(file.read_bytes())
        save_file(plain, other / "model.safetensors")
        save_file(packed, path / "model.safetensors")
        config = json.loads((path / "config.json").read_text())
        config["quantization_config"] = settings
        (path / "config.json").write_text(json.dumps(config))
        return path, other

    return make


def linears(path):
    loaded = load_text(LoadRequest(model_id=str(path), dtype="f32")).model
    return {n: m for n, m in loaded.named_modules() if n.startswith("model.layers")}


CASES = {
    "4 bits": ({"bits": 4, "group_size": GROUP}, lambda w: gptq_parts(w, 4)),
    "3 bits": ({"bits": 3}, lambda w: gptq_parts(w, 3)),
    "2 bits": ({"bits": 2}, lambda w: gptq_parts(w, 2)),
    "8 bits": ({"bits": 8}, lambda w: gptq_parts(w, 8)),
    "second layout": (
        {"bits": 4, "checkpoint_format": "gptq_v2"},
        lambda w: gptq_parts(w, 4, less_one=False),
    ),
    "by importance": (
        {"bits": 4, "desc_act": True},
        lambda w: gptq_parts(w, 4, order=np.random.default_rng(2).permutation(w.shape[1])),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_gptq_stays_packed_and_means_the_same(model, case):
    settings, parts_of = CASES[case]
    check(*model({"quant_method": "gptq", **settings}, parts_of))


def test_awq_stays_packed_and_means_the_same(model):
    settings = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "GEMM"}
    check(*model(settings, awq_parts))


def check(packed, plain):
    expected = linears(plain)
    seen = 0
    for name, module in linears(packed).items():
        if isinstance(module, PackedLinear):
            seen += 1
            assert module.packed.group_size == GROUP
            weight = expected[name].weight
            torch.testing.assert_close(module.packed.dequantize(), weight, atol=1e-5, rtol=1e-5)
            x = torch.randn(3, weight.shape[1])
            torch.testing.assert_close(module(x), x @ weight.T, atol=1e-4, rtol=1e-4)
    assert seen == 14


def test_parts_that_do_not_fit(model):
    path, _ = model({"quant_method": "gptq", "bits": 4}, lambda w: gptq_parts(w, 4))
    tensors = load_file(path / "model.safetensors")
    q = "model.layers.0.self_attn.q_proj"
    for part, value, match in (
        ("scales", None, "but not .*scales"),
        ("scales", torch.ones(2, 8), "do not belong together"),
        ("scales", torch.ones(3, 64), "3 equal groups"),
        ("g_idx", torch.zeros(64, dtype=torch.int32), "equal groups"),
        ("g_idx", torch.zeros(63, dtype=torch.int32), "63"),
        ("qweight", torch.ones(8, 64), "no 32-bit words"),
        ("qweight", tensors[f"{q}.qweight"][:, :-8].contiguous(), "do not belong|configuration"),
    ):
        changed = {k: v for k, v in tensors.items() if k != f"{q}.{part}"}
        if value is not None:
            changed[f"{q}.{part}"] = value
        save_file(changed, path / "model.safetensors")
        with pytest.raises(CheckpointError, match=match):
            linears(path)


class Nothing:
    def names(self):
        return []


@pytest.mark.parametrize(
    ("reader", "settings", "match"),
    [
        (GptqReader, {"bits": 5}, "quantization_config.bits is 5"),
        (GptqReader, {}, "bits is None"),
        (GptqReader, {"bits": 4, "checkpoint_format": "marlin"}, "'marlin'"),
        (AwqReader, {"bits": 8}, "bits is 8"),
        (AwqReader, {"bits": 4, "version": "exllama"}, "'exllama'"),
    ],
)
def test_settings_that_are_not_covered(reader, settings, match):
    with pytest.raises(ConfigError, match=match):
        reader().read_checkpoint(Nothing(), settings)


def test_they_are_not_written():
    with pytest.raises(ConfigError, match="read, not made"):
        GptqReader().quantize(torch.ones(2, 64), "gptq")
