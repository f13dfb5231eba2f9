"""Checkpoints that are packed here bit by bit, as the formats are described, and opened."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tramontane.errors import CheckpointError, ConfigError
from tramontane.nn import PackedLinear
from tramontane_gptq.awq import AwqReader
from tramontane_gptq.gptq import GptqReader
from tramontane_testkit.packed_models import assert_multiplies, layer_modules, packed_model

GROUP = 32


def stream(codes, bits):
    """Numbers as one little-endian stream in 32-bit words."""
    whole = sum(int(code) << (index * bits) for index, code in enumerate(codes))
    data = whole.to_bytes(len(codes) * bits // 8, "little")
    return np.frombuffer(data, dtype="<i4")


def gptq_parts(shape, bits, *, order=None, less_one=True):
    """Parts of a checkpoint, and what they mean, for a weight of shape (out, in)."""
    out, columns = shape
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


def awq_parts(shape):
    out, columns = shape
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


def models(directory, settings, parts_of):
    return packed_model(directory, settings, lambda _, shape: parts_of(shape))


CASES = {
    "4 bits": ({"bits": 4, "group_size": GROUP}, lambda shape: gptq_parts(shape, 4)),
    "3 bits": ({"bits": 3}, lambda shape: gptq_parts(shape, 3)),
    "2 bits": ({"bits": 2}, lambda shape: gptq_parts(shape, 2)),
    "8 bits": ({"bits": 8}, lambda shape: gptq_parts(shape, 8)),
    "second layout": (
        {"bits": 4, "checkpoint_format": "gptq_v2"},
        lambda shape: gptq_parts(shape, 4, less_one=False),
    ),
    "by importance": (
        {"bits": 4, "desc_act": True},
        lambda shape: gptq_parts(shape, 4, order=np.random.default_rng(2).permutation(shape[1])),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_gptq_stays_packed_and_means_the_same(tmp_path, case):
    settings, parts_of = CASES[case]
    check(*models(tmp_path, {"quant_method": "gptq", **settings}, parts_of))


def test_awq_stays_packed_and_means_the_same(tmp_path):
    settings = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "GEMM"}
    check(*models(tmp_path, settings, awq_parts))


def check(packed, plain):
    expected = layer_modules(plain)
    seen = 0
    for name, module in layer_modules(packed).items():
        if isinstance(module, PackedLinear):
            seen += 1
            assert module.packed.group_size == GROUP
            weight = expected[name].weight
            torch.testing.assert_close(module.packed.dequantize(), weight, atol=1e-5, rtol=1e-5)
            assert_multiplies(module, weight)
    assert seen == 14


def test_parts_that_do_not_fit(tmp_path):
    settings = {"quant_method": "gptq", "bits": 4}
    path, _ = models(tmp_path, settings, lambda shape: gptq_parts(shape, 4))
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
            layer_modules(path)


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
