"""Checkpoints that are packed here bit by bit, as the format is described, and opened."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from tramontane.errors import CheckpointError, ConfigError
from tramontane.nn import GroupAffineWeight, PackedLinear
from tramontane_compressed_tensors.reader import CompressedTensorsReader
from tramontane_testkit.packed_models import (
    StoredTensors,
    assert_multiplies,
    layer_modules,
    packed_model,
)

GROUP = 32
RNG = np.random.default_rng(0)


def words(rows, bits):
    """Each row of numbers from zero up as one little-endian stream in 32-bit words."""
    result = []
    for row in rows:
        whole = sum(int(code) << (index * bits) for index, code in enumerate(row))
        size = -(-len(row) * bits // 32) * 4
        result.append(np.frombuffer(whole.to_bytes(size, "little"), dtype="<i4"))
    return np.stack(result)


def tiled(weights, shape):
    """How many tiles there are, and where in them each number of a weight lies."""
    sizes = {
        "tensor": shape,
        "channel": (1, shape[1]),
        "group": (1, weights.get("group_size")),
        "block": weights.get("block_structure"),
    }[weights["strategy"]]
    rows, columns = (np.arange(side) // size for side, size in zip(shape, sizes, strict=True))
    return (rows[-1] + 1, columns[-1] + 1), rows, columns


def packed(weights, shape, order=None):
    """Parts of a weight of integers, and what they mean."""
    bits, symmetric = weights["num_bits"], weights.get("symmetric", True)
    grid, rows_of, group_of = tiled(weights, shape)
    low = -(1 << bits - 1)
    numbers = RNG.integers(low, -low, shape)
    scales = RNG.uniform(0.01, 0.02, grid).astype(np.float16)
    zeros = RNG.integers(low, -low, grid) * (not symmetric)
    parts = {
        "weight_packed": words(numbers - low, bits),
        "weight_shape": np.array(shape),
        "weight_scale": scales.reshape(-1) if grid == (1, 1) else scales,
    }
    if not symmetric:
        down = words((zeros - low).T, bits).T
        parts["weight_zero_point"] = zeros.astype(np.int8) if grid == (1, 1) else down
    if order is not None:
        group_of = group_of[np.argsort(order)]
        parts["weight_g_idx"] = group_of.astype(np.int32)
    at = np.ix_(rows_of, group_of)
    return parts, (numbers - zeros[at]) * scales.astype(np.float32)[at]


def integers(weights, shape):
    """The same as int8, one a number."""
    grid, *at = tiled(weights, shape)
    numbers = RNG.integers(-128, 128, shape)
    scales = RNG.uniform(0.01, 0.02, grid).astype(np.float32)
    zeros = RNG.integers(-128, 128, grid) * (not weights.get("symmetric", True))
    parts = {"weight": numbers.astype(np.int8), "weight_scale": scales}
    if not weights.get("symmetric", True):
        parts["weight_zero_point"] = zeros.astype(np.int8)
    return parts, (numbers - zeros[np.ix_(*at)]) * scales[np.ix_(*at)]


def floats(weights, shape):
    """8-bit floats, decoded here from their bits."""
    codes = RNG.integers(0, 256, shape).astype(np.uint8)
    codes[(codes & 0x7F) == 0x7F] = 0  # which mean that there is no number
    sign, exponent, fraction = codes >> 7, (codes >> 3 & 15).astype(int), codes & 7
    size = np.where(
        exponent == 0, fraction / 8 * 2.0**-6, (1 + fraction / 8) * 2.0 ** (exponent - 7.0)
    )
    grid, *at = tiled(weights, shape)
    scales = RNG.uniform(0.001, 0.002, grid).astype(np.float32)
    parts = {
        "weight": torch.from_numpy(codes.copy()).view(torch.float8_e4m3fn),
        "weight_scale": scales,
        "input_scale": np.ones(1, np.float32),
    }
    return parts, np.where(sign, -size, size) * scales[np.ix_(*at)]


def settings_of(layout, weights, **others):
    group = {"targets": ["Linear"], "weights": weights, "input_activations": {"num_bits": 8}}
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "kv_cache_scheme": {"num_bits": 8, "type": "float"},
        **others,
    }


def make(tmp_path, settings, parts_of):
    others = {"model.layers.0.self_attn.k_scale": torch.ones(1)}
    return packed_model(tmp_path, settings, parts_of, others=others)


def check(path, plain, formats):
    expected = layer_modules(plain)
    seen = set()
    for name, module in layer_modules(path).items():
        if isinstance(module, PackedLinear):
            weight = expected[name].weight
            torch.testing.assert_close(module.packed.dequantize(), weight, atol=1e-5, rtol=1e-5)
            assert_multiplies(module, weight, atol=1e-3)
            seen.add(module.packed.format)
            del expected[name]
    assert not any(isinstance(module, torch.nn.Linear) for module in expected.values())
    assert seen == set(formats)


def group(bits, **others):
    return {"num_bits": bits, "strategy": "group", "group_size": GROUP, **others}


PACKED = {
    "4 bits": group(4),
    "4 bits with zeros": group(4, symmetric=False),
    "3 bits": group(3),
    "8 bits by channel with zeros": {"num_bits": 8, "strategy": "channel", "symmetric": False},
    "8 bits by tensor with a zero": {"num_bits": 8, "strategy": "tensor", "symmetric": False},
}


@pytest.mark.parametrize("case", PACKED)
def test_packed_integers(tmp_path, case):
    weights = PACKED[case]
    models = make(
        tmp_path, settings_of("pack-quantized", weights), lambda _, shape: packed(weights, shape)
    )
    check(*models, [f"affine.{weights['num_bits']}"])


@pytest.mark.parametrize("nested", [False, True])
def test_the_key_of_older_files(tmp_path, nested):
    weights = group(4)
    packed_dir, plain = make(
        tmp_path, settings_of("pack-quantized", weights), lambda _, shape: packed(weights, shape)
    )
    config = json.loads((packed_dir / "config.json").read_text())
    settings = config.pop("quantization_config")
    if nested:
        settings["quant_method"] = "sparseml"
        settings = {"sparsity_config": {"format": "dense"}, "quantization_config": settings}
    config["compression_config"] = settings
    (packed_dir / "config.json").write_text(json.dumps(config))
    check(packed_dir, plain, ["affine.4"])
    for wrong in ("fp8", {"quantization_config": 3}):
        (packed_dir / "config.json").write_text(json.dumps(config | {"compression_config": wrong}))
        with pytest.raises(ConfigError, match="compression_config"):
            layer_modules(packed_dir)


def test_columns_in_order_of_importance(tmp_path):
    weights = group(4, symmetric=False, actorder="group")

    def parts_of(name, shape):
        if "q_proj" not in name:
            return packed(weights, shape, np.random.default_rng(1).permutation(shape[1]))
        parts, plain = packed(weights, shape)
        return parts | {"weight_g_idx": np.full(shape[1], -1, np.int32)}, plain

    check(*make(tmp_path, settings_of("pack-quantized", weights), parts_of), ["affine.4"])


@pytest.mark.parametrize(
    "weights",
    [
        {"num_bits": 8, "strategy": "channel"},
        # The last tiles are cut.
        {"num_bits": 8, "strategy": "block", "block_structure": [48, 32], "symmetric": False},
    ],
    ids=["channel", "block"],
)
def test_int8(tmp_path, weights):
    models = make(
        tmp_path, settings_of("int-quantized", weights), lambda _, shape: integers(weights, shape)
    )
    check(*models, ["affine.8"])


@pytest.mark.parametrize(
    ("layout", "weights", "kind"),
    [
        ("float-quantized", {"strategy": "tensor"}, "tensor"),
        ("naive-quantized", {"strategy": "channel"}, "channel"),
        ("float-quantized", {"strategy": "block", "block_structure": [16, 32]}, "block"),
    ],
)
def test_8_bit_floats(tmp_path, layout, weights, kind):
    weights = {"num_bits": 8, "type": "float", **weights}
    models = make(tmp_path, settings_of(layout, weights), lambda _, shape: floats(weights, shape))
    check(*models, [f"fp8.{kind}"])


def test_schemes_by_name_expression_and_class(tmp_path):
    fine, coarse = group(4), {"num_bits": 8, "strategy": "channel"}
    fp8 = {"num_bits": 8, "type": "float", "strategy": "tensor"}
    last = "model.layers.1.mlp.down_proj"
    settings = {
        "quant_method": "compressed-tensors",
        "format": "mixed-precision",
        "config_groups": {
            "rest": {"targets": ["Linear"], "weights": fine, "format": "pack-quantized"},
            "mlp": {"targets": ["re:.*mlp"], "weights": coarse, "format": "int-quantized"},
            "last": {"targets": [last], "weights": fp8, "format": "float-quantized"},
            "attention": {"targets": ["LlamaAttention"], "input_activations": {"num_bits": 8}},
        },
        "ignore": ["lm_head", "re:.*v_proj"],
    }

    def parts_of(name, shape):
        if "v_proj" in name:
            plain = RNG.normal(size=shape).astype(np.float32)
            return {"weight": plain}, plain
        if name.startswith(last):
            return floats(fp8, shape)
        return integers(coarse, shape) if "mlp" in name else packed(fine, shape)

    path, plain = make(tmp_path, settings, parts_of)
    modules, expected = layer_modules(path), layer_modules(plain)
    seen = {}
    for name, module in modules.items():
        if isinstance(module, PackedLinear):
            seen[name] = module.packed.format
            torch.testing.assert_close(
                module.packed.dequantize(), expected[name].weight, atol=1e-5, rtol=1e-5
            )
    assert seen[last] == "fp8.tensor"
    assert seen["model.layers.0.mlp.down_proj"] == "affine.8"
    assert seen["model.layers.0.self_attn.q_proj"] == "affine.4"
    assert "model.layers.0.self_attn.v_proj" not in seen


def test_an_embedding_has_a_scheme_of_its_own():
    stored = {
        f"model.embed_tokens.{key}": torch.as_tensor(value)
        for key, value in packed(group(8), (10, 64))[0].items()
    }
    settings = settings_of("pack-quantized", group(4))
    settings["config_groups"]["table"] = {"targets": ["Embedding"], "weights": group(8)}
    view = CompressedTensorsReader().read_checkpoint(StoredTensors(stored), settings)
    assert view.names() == ["model.embed_tokens.weight"]
    weight = view.tensor("model.embed_tokens.weight")
    assert isinstance(weight, GroupAffineWeight)
    assert weight.format == "affine.8"
    assert view.packed_bytes("model.embed_tokens.weight") == weight.nbytes
    rows = torch.tensor([7, 0])
    assert torch.equal(weight.gather(rows), weight.dequantize()[rows])


def opened(settings, parts):
    stored = {f"m.{key}": torch.as_tensor(value) for key, value in parts.items()}
    view = CompressedTensorsReader().read_checkpoint(StoredTensors(stored), settings)
    return view.tensor("m.weight")


def test_codes_are_views_of_the_file():
    parts, _ = packed(group(4), (16, 64))
    stored = {f"m.{key}": torch.as_tensor(value) for key, value in parts.items()}
    view = CompressedTensorsReader().read_checkpoint(
        StoredTensors(stored), settings_of("pack-quantized", group(4))
    )
    assert view.tensor("m.weight").codes.data_ptr() == stored["m.weight_packed"].data_ptr()


INT4, FP8 = group(4, symmetric=False), {"num_bits": 8, "type": "float", "strategy": "channel"}
INT8 = {"num_bits": 8, "strategy": "channel"}


@pytest.mark.parametrize(
    ("layout", "weights", "part", "value", "match"),
    [
        ("pack-quantized", INT4, "weight_packed", None, "but not 'm.weight_packed'"),
        ("pack-quantized", INT4, "weight_scale", None, "but not 'm.weight_scale'"),
        ("pack-quantized", INT4, "weight_shape", None, "but not 'm.weight_shape'"),
        ("pack-quantized", INT4, "weight_zero_point", None, "but not 'm.weight_zero_point'"),
        ("pack-quantized", INT4, "weight_packed", torch.ones(16, 7).int(), r"m.weight: .*\[16, 8]"),
        ("pack-quantized", INT4, "weight_shape", torch.ones(3).long(), "rows and columns"),
        ("pack-quantized", INT4, "weight_shape", torch.tensor([16, 72]), "words"),
        ("pack-quantized", INT4, "weight_shape", torch.tensor([-16, 64]), "words"),
        ("pack-quantized", INT4, "weight_scale", torch.ones(16, 3), "which takes"),
        ("pack-quantized", INT4, "weight_scale", torch.ones(16, 2).int(), "scales torch.int32"),
        ("pack-quantized", INT4, "weight_zero_point", torch.ones(16, 2).int(), "take words"),
        ("pack-quantized", INT4, "weight_zero_point", torch.ones(2, 2), "do not fit"),
        ("pack-quantized", INT4, "weight_g_idx", torch.zeros(64).int(), "equal groups"),
        ("pack-quantized", group(4, group_size=48), "weight_g_idx", None, "groups of 48 columns"),
        ("int-quantized", INT8, "weight", torch.ones(16, 64), "matrix of int8"),
        ("int-quantized", INT8, "weight_scale", torch.ones(15, 1), "which takes"),
        ("int-quantized", INT8, "weight_scale", None, "without 'm.weight_scale'"),
        ("float-quantized", FP8, "weight", torch.ones(16, 64), "matrix of float8_e4m3fn"),
        ("float-quantized", FP8, "weight_scale", torch.ones(16, 2), "which takes"),
        ("float-quantized", FP8, "weight_zero_point", torch.ones(16, 1), "not zero"),
    ],
)
def test_parts_that_do_not_fit(layout, weights, part, value, match):
    shape = (16, 64)
    maker = {"pack-quantized": packed, "int-quantized": integers, "float-quantized": floats}[layout]
    parts, _ = maker(weights, shape)
    parts.pop(part, None)
    if value is not None:
        parts[part] = value
    with pytest.raises(CheckpointError, match=match):
        opened(settings_of(layout, weights), parts)


def test_modules_that_no_scheme_covers():
    parts, _ = packed(group(4), (16, 64))
    for changed, match in (
        ({"ignore": ["re:m"]}, "ignore says that it is not"),
        (
            {"config_groups": {"g": {"targets": ["other"], "weights": group(4)}}},
            "m is stored packed, and no group .* 'other'",
        ),
    ):
        with pytest.raises(CheckpointError, match=match):
            opened(settings_of("pack-quantized", group(4)) | changed, parts)


def weights_with(**changes):
    return {"config_groups": {"g": {"targets": ["Linear"], "weights": group(4) | changes}}}


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (
            {"format": "nvfp4-pack-quantized"},
            "quantization_config.format is 'nvfp4-pack-quantized'",
        ),
        ({"format": "marlin-24"}, "format is 'marlin-24'"),
        ({"format": "dense"}, "format is 'dense'"),
        ({"format": "mixed-precision"}, "config_groups.group_0.format is None"),
        ({"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity_config.format is"),
        ({"transform_config": {"config_groups": {"R1": {}}}}, "transform_config"),
        ({"moe_sparsity_config": {"method": "prune"}}, "moe_sparsity_config"),
        ({"config_groups": {}}, "names no weights"),
        ({"config_groups": None}, "config_groups is None"),
        ({"config_groups": {"W8A8": ["Linear"]}}, "config_groups.W8A8 is"),
        ({"ignore": "lm_head"}, "ignore is 'lm_head'"),
        ({"ignore": ["re:("]}, r"'re:\(' is invalid"),
        (weights_with(type="float"), "weights.type is 'float'"),
        (weights_with(num_bits=16), "weights.num_bits is 16"),
        (weights_with(num_bits=True), "weights.num_bits is True"),
        (weights_with(strategy="tensor_group"), "weights.strategy is 'tensor_group'"),
        (weights_with(group_size="all"), "weights.group_size is 'all'"),
        (weights_with(group_size=None), "weights.group_size is missing"),
        (weights_with(dynamic=True), "weights.dynamic is True"),
        (weights_with(strategy="block"), "weights.block_structure is None"),
        (
            {"config_groups": {"g": {"targets": ["FusedExperts"], "weights": group(4)}}},
            "config_groups.g.targets is 'FusedExperts'",
        ),
        (
            {"format": "float-quantized", **weights_with(type="float", num_bits=4)},
            "weights.num_bits is 4",
        ),
    ],
)
def test_settings_that_are_not_covered(changes, match):
    settings = settings_of("pack-quantized", group(4)) | changes
    with pytest.raises(ConfigError, match=match):
        CompressedTensorsReader().read_checkpoint(StoredTensors({}), settings)


def test_it_is_not_written():
    with pytest.raises(ConfigError, match="compressed-tensors checkpoints are read, not made"):
        CompressedTensorsReader().quantize(torch.ones(2, 64), "int4")
