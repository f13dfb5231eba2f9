"""Checkpoints as bitsandbytes and transformers store them, packed here by the description."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from tramontane.errors import CheckpointError, ConfigError
from tramontane.nn import PackedLinear
from tramontane_bitsandbytes.reader import BitsAndBytesReader
from tramontane_testkit.packed_models import (
    StoredTensors,
    assert_multiplies,
    layer_modules,
    packed_model,
)

RNG = np.random.default_rng(0)
TABLES = {
    "nf4": RNG.uniform(-1, 1, 16).astype(np.float32),
    "fp4": np.array([0, 0.0625, 8, 12, 4, 6, 2, 3] * 2, np.float32) / 12,
}
FOUR = {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False}
EIGHT = {"quant_method": "bitsandbytes", "load_in_4bit": False, "load_in_8bit": True}


def blob(state):
    return torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)


def four_bits(shape, kind="nf4", *, nested=False, block=64, storage=torch.uint8):
    """Parts of a weight by what follows the module's name, and what they mean."""
    count = shape[0] * shape[1]
    codes = RNG.integers(0, 16, count).astype(np.uint8)
    blocks = -(-count // block)
    state = {"quant_type": kind, "blocksize": block, "dtype": "bfloat16", "shape": list(shape)}
    scales = RNG.uniform(0.01, 0.02, blocks).astype(np.float32)
    parts = {"weight.absmax": scales, "weight.quant_map": TABLES[kind]}
    if nested:
        small = RNG.integers(0, 256, blocks).astype(np.uint8)
        table = RNG.uniform(-0.005, 0.005, 256).astype(np.float32)
        large = RNG.uniform(0.5, 1, -(-blocks // 256)).astype(np.float32)
        parts |= {
            "weight.absmax": small,
            "weight.nested_absmax": large,
            "weight.nested_quant_map": table,
        }
        state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.015}
        scales = table[small] * large[np.arange(blocks) // 256] + np.float32(0.015)
    parts = {key: torch.from_numpy(value.copy()) for key, value in parts.items()}
    parts["weight"] = torch.from_numpy(codes[0::2] << 4 | codes[1::2]).view(storage).unsqueeze(1)
    parts[f"weight.quant_state.bitsandbytes__{kind}"] = blob(state)
    plain = TABLES[kind][codes] * scales[np.arange(count) // block]
    return parts, plain.reshape(shape)


def eight_bits(shape):
    codes = RNG.integers(-127, 128, shape).astype(np.int8)
    largest = RNG.uniform(0.5, 1, shape[0]).astype(np.float32)
    parts = {
        "weight": torch.from_numpy(codes),
        "SCB": torch.from_numpy(largest),
        "weight_format": torch.tensor(0, dtype=torch.uint8),
    }
    return parts, codes * largest[:, None] / 127


CASES = {
    "nf4": (FOUR | {"bnb_4bit_quant_type": "nf4"}, four_bits),
    "nf4 nested": (
        FOUR | {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
        lambda shape: four_bits(shape, nested=True),
    ),
    "fp4 in bf16": (
        FOUR | {"bnb_4bit_quant_storage": "bfloat16"},
        lambda shape: four_bits(shape, "fp4", storage=torch.bfloat16, block=128),
    ),
    "int8": (EIGHT | {"llm_int8_threshold": 6.0}, eight_bits),
}


@pytest.mark.parametrize("case", CASES)
def test_weights_stay_packed_and_mean_the_same(tmp_path, case):
    settings, parts_of = CASES[case]
    # 96 columns do not fill blocks of 64: blocks span rows.
    path, plain = packed_model(
        tmp_path, settings, lambda _, shape: parts_of(shape), intermediate_size=96
    )
    expected, seen = layer_modules(plain), 0
    for name, module in layer_modules(path).items():
        if isinstance(module, PackedLinear):
            seen += 1
            assert module.packed.format == "affine.8" if case == "int8" else f"bnb.{case[:3]}"
            weight = expected[name].weight
            # Bytes are stored from zero up, which costs the last bits of a scale.
            slack = 4 * 2**-24 if case == "int8" else 0
            torch.testing.assert_close(module.packed.dequantize(), weight, atol=slack, rtol=1e-6)
            assert_multiplies(module, weight)
    assert seen == 14


def opened(parts):
    settings = FOUR if "m.weight.absmax" in parts else EIGHT
    view = BitsAndBytesReader().read_checkpoint(StoredTensors(parts), settings)
    return view, view.tensor("m.weight")


def test_codes_are_views_of_the_file_and_bytes_are_counted():
    parts = {f"m.{key}": value for key, value in four_bits((16, 64))[0].items()}
    view, weight = opened(parts)
    assert view.names() == ["m.weight"]
    assert weight.codes.data_ptr() == parts["m.weight"].data_ptr()
    view, weight = opened({f"m.{key}": value for key, value in eight_bits((16, 64))[0].items()})
    assert view.names() == ["m.weight"]
    assert view.packed_bytes("m.weight") == weight.nbytes


STATE = "m.weight.quant_state.bitsandbytes__nf4"


def stated(**changes):
    state = {
        "quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [16, 64],
        "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.015,
    }  # fmt: skip
    return blob(state | changes)


@pytest.mark.parametrize(
    ("part", "value", "match"),
    [
        ("m.weight", None, "but not 'm.weight'"),
        ("m.weight.absmax", None, "but not 'm.weight.absmax'"),
        ("m.weight.quant_map", None, "but not 'm.weight.quant_map'"),
        ("m.weight.nested_absmax", None, "but not 'm.weight.nested_absmax'"),
        ("m.weight.nested_quant_map", None, "but not 'm.weight.nested_quant_map'"),
        (STATE, None, "but not 'm.weight.quant_state"),
        (STATE[:-3] + "fp4", torch.ones(1), "several m.weight.quant_state"),
        ("m.weight", torch.ones(1, 512, dtype=torch.uint8), "no column"),
        ("m.weight", torch.ones(511, 1, dtype=torch.uint8), "take 512 bytes"),
        ("m.weight.absmax", torch.ones(17, dtype=torch.uint8), "takes 16 scales"),
        ("m.weight.absmax", torch.ones(16), "absmax is torch.float32"),
        ("m.weight.nested_absmax", torch.ones(2), r"nested_absmax is .*\[2]"),
        ("m.weight.nested_quant_map", torch.ones(255), "nested_quant_map is"),
        ("m.weight.quant_map", torch.ones(17), "no 16 numbers"),
        (STATE, torch.ones(3), f"{STATE}: .* is no JSON"),
        (STATE, torch.tensor([255, 1], dtype=torch.uint8), "is no JSON"),
        (STATE, torch.full((4000,), ord("["), dtype=torch.uint8), "is no JSON"),
        (STATE, torch.ones(5000, dtype=torch.uint8), "is no JSON"),
        (STATE, blob([1]), "not settings by name"),
        (STATE, stated(quant_type="fp4"), "quant_type is 'fp4', the name says 'nf4'"),
        (STATE, stated(shape=[16]), "rows and columns"),
        (STATE, stated(shape=[-16, -64]), "rows and columns"),
        (STATE, stated(shape=[10**9, 10**9]), "bytes of codes"),
        (STATE, stated(blocksize=60), "blocksize is 60"),
        (STATE, stated(blocksize=True), "blocksize is True"),
        (STATE, stated(nested_blocksize=0), "nested_blocksize is 0"),
        (STATE, stated(nested_offset=float("nan")), "nested_offset is nan"),
        (STATE, stated(nested_offset=10**400), "nested_offset is 1000"),
        (STATE, stated(nested_blocksize=None), "absmax is torch.uint8"),
    ],
)
def test_parts_of_4_bits_that_do_not_fit(part, value, match):
    made, _ = four_bits((16, 64), nested=True)
    parts = {f"m.{key}": tensor for key, tensor in made.items()}
    parts.pop(part, None)
    if value is not None:
        parts[part] = value
    with pytest.raises(CheckpointError, match=match):
        opened(parts)


@pytest.mark.parametrize(
    ("part", "value", "match"),
    [
        ("m.weight", None, "but not 'm.weight'"),
        ("m.SCB", None, "without 'm.SCB'"),
        ("m.weight", torch.ones(16, 64), "no matrix of int8"),
        ("m.weight", torch.ones(16, 0, dtype=torch.int8), "rows of 0 bytes"),
        ("m.SCB", torch.ones(15), r"SCB is .*\[15]"),
        ("m.SCB", torch.ones(16, dtype=torch.int8), "SCB is torch.int8"),
        ("m.weight_format", torch.tensor(1, dtype=torch.uint8), "weight_format is"),
    ],
)
def test_parts_of_8_bits_that_do_not_fit(part, value, match):
    parts = {f"m.{key}": tensor for key, tensor in eight_bits((16, 64))[0].items()}
    parts.pop(part, None)
    if value is not None:
        parts[part] = value
    with pytest.raises(CheckpointError, match=match):
        opened(parts)


def test_bytes_without_a_state():
    with pytest.raises(CheckpointError, match="is stored in bytes without"):
        opened({"m.weight": torch.ones(512, 1, dtype=torch.uint8)})


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({}, "load_in_4bit and load_in_8bit must be true, not None and None"),
        ({"load_in_4bit": True, "load_in_8bit": True}, "not True and True"),
        ({"load_in_4bit": "yes"}, "load_in_4bit is 'yes'"),
        (FOUR | {"bnb_4bit_quant_type": "af4"}, "bnb_4bit_quant_type is 'af4'"),
        (EIGHT | {"llm_int8_has_fp16_weight": True}, "llm_int8_has_fp16_weight is True"),
    ],
)
def test_settings_that_are_not_covered(settings, match):
    with pytest.raises(ConfigError, match=match):
        BitsAndBytesReader().read_checkpoint(StoredTensors({}), settings)


def test_it_is_not_written():
    with pytest.raises(ConfigError, match="bitsandbytes checkpoints are read, not made"):
        BitsAndBytesReader().quantize(torch.ones(2, 64), "nf4")
