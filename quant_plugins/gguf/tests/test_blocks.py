"""Every ggml block type, bit for bit against the ``gguf`` package."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType

from tramontane.errors import ConfigError
from tramontane_gguf import blocks as blocks_module
from tramontane_gguf.blocks import GgmlWeight
from tramontane_gguf.dequantize import DECODERS
from tramontane_gguf.quantizer import ENCODABLE, GgmlQuantizer
from tramontane_gguf.types import BY_NAME, BY_NUMBER

# The gguf package knows the sizes of these but does not decode them.
BY_DEFINITION = {"q8_1", "q8_k", "q1_0"}
REFERENCED = sorted(set(DECODERS) - BY_DEFINITION)

# What the package encodes as ggml does; test_encode.py has the others.
EXACT = (
    "f32", "f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "tq1_0", "tq2_0", "mxfp4",
)  # fmt: skip

# Bytes of each block that hold f16 scales, kept finite in random blocks.
F16_AT = {
    "q4_0": [0], "q4_1": [0, 2], "q5_0": [0], "q5_1": [0, 2], "q8_0": [0], "q8_1": [0, 2],
    "q2_k": [80, 82], "q3_k": [108], "q4_k": [0, 2], "q5_k": [0, 2], "q6_k": [208],
    "tq1_0": [52], "tq2_0": [64], "iq4_nl": [0], "iq4_xs": [0], "iq2_xxs": [0], "iq2_xs": [0],
    "iq2_s": [0], "iq3_xxs": [0], "iq3_s": [0], "iq1_s": [0], "q1_0": [0],
}  # fmt: skip


def random_rows(name: str, rows: int, blocks: int, seed: int = 0) -> np.ndarray:
    """Rows of random blocks with finite scales, [rows, blocks · type_size] uint8."""
    kind = BY_NAME[name]
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, (rows, blocks, kind.type_size), dtype=np.uint8)
    for at in F16_AT.get(name, []):
        scale = rng.normal(0, 0.1, (rows, blocks)).astype(np.float16)
        raw[..., at : at + 2] = scale[..., None].view(np.uint8)
    if name == "iq1_m":
        raw[..., 55] &= 0xBF  # the exponent's top bit, so that no scale is infinite
    if name == "mxfp4":
        raw[..., 0] = rng.integers(0, 250, (rows, blocks))
    return raw.reshape(rows, -1)


def test_types_are_those_of_the_gguf_package() -> None:
    for number in GGMLQuantizationType:
        kind = BY_NUMBER[int(number)]
        assert kind.name == number.name.lower()
        if kind.name != "q8_1":  # there the package gives 40 bytes where ggml has 36
            assert (kind.block_size, kind.type_size) == gguf.GGML_QUANT_SIZES[number]
    assert {k.name for k in BY_NUMBER.values() if k.dtype is None} == set(DECODERS)


@pytest.mark.parametrize("name", REFERENCED)
def test_decoding_is_bit_equal(name: str) -> None:
    kind = BY_NAME[name]
    raw = random_rows(name, 48, 5)
    expected = gguf.dequantize(raw, GGMLQuantizationType[name.upper()])
    weight = GgmlWeight.from_name(torch.from_numpy(raw), name, (48, 5 * kind.block_size))
    given = weight.dequantize().numpy()
    assert np.isfinite(expected).all()
    assert np.array_equal(given.view(np.int32), expected.view(np.int32))


@pytest.mark.parametrize("name", ["mxfp4", "nvfp4"])
def test_every_scale_code_of_the_float_types(name: str) -> None:
    kind = BY_NAME[name]
    raw = np.zeros((256, kind.type_size), dtype=np.uint8)
    scales = kind.type_size - kind.block_size // 2
    raw[:, :scales] = np.arange(256, dtype=np.uint8)[:, None]
    raw[:, scales:] = np.arange(kind.block_size // 2, dtype=np.uint8) * 17
    with np.errstate(over="ignore"):
        expected = gguf.dequantize(raw, GGMLQuantizationType[name.upper()])
    given = DECODERS[name](torch.from_numpy(raw)).numpy()
    assert np.array_equal(given, expected)


def test_types_that_the_package_does_not_decode() -> None:
    raw = random_rows("q8_1", 4, 1)
    q8 = np.concatenate([raw[:, :2], raw[:, 4:]], axis=1)
    expected = gguf.dequantize(q8, GGMLQuantizationType.Q8_0)
    assert np.array_equal(DECODERS["q8_1"](torch.from_numpy(raw)).numpy(), expected)

    rng = np.random.default_rng(3)
    scale = rng.normal(size=(4, 1)).astype(np.float32)
    quants = rng.integers(-127, 128, (4, 256)).astype(np.int8)
    sums = quants.reshape(4, 16, 16).sum(-1).astype(np.int16)
    raw = np.concatenate([scale.view(np.uint8), quants.view(np.uint8), sums.view(np.uint8)], axis=1)
    assert np.array_equal(DECODERS["q8_k"](torch.from_numpy(raw)).numpy(), scale * quants)

    raw = random_rows("q1_0", 4, 1)
    scale = raw[:, :2].copy().view(np.float16).astype(np.float32)
    bits = np.unpackbits(raw[:, 2:], axis=1, bitorder="little").astype(bool)
    assert np.array_equal(
        DECODERS["q1_0"](torch.from_numpy(raw)).numpy(), np.where(bits, scale, -scale)
    )


@pytest.mark.parametrize("name", ["q4_k", "q8_0", "iq2_xxs", "bf16", "f32"])
def test_rows_gather_select_concat(name: str) -> None:
    kind = BY_NAME[name]
    columns = 2 * max(kind.block_size, 16)
    raw = random_rows(name, 12, columns // kind.block_size)
    if kind.dtype is not None:
        raw = gguf.quantize(
            np.random.default_rng(0).normal(size=(12, columns)).astype(np.float32),
            GGMLQuantizationType[name.upper()],
        ).view(np.uint8)
    weight = GgmlWeight.from_name(torch.from_numpy(raw.copy()), name, (12, columns))
    whole = weight.dequantize()
    assert whole.shape == (12, columns)
    assert weight.nbytes == raw.size
    part = weight.rows(3, 7)
    assert part.blocks.data_ptr() == weight.blocks[3].data_ptr()
    assert torch.equal(part.dequantize(), whole[3:7])
    index = torch.tensor([5, 0, 5, 11])
    assert torch.equal(weight.gather(index), whole[index])
    assert torch.equal(weight.select(index).dequantize(), whole[index])
    assert weight.gather(index, torch.bfloat16).dtype == torch.bfloat16
    assert torch.equal(weight.dequantize(torch.bfloat16), whole.to(torch.bfloat16))
    again = GgmlWeight.concat([weight.rows(0, 5), weight.rows(5, 12)])
    assert again.shape == weight.shape
    assert torch.equal(again.blocks, weight.blocks)
    assert weight.to(torch.device("cpu")) is weight
    assert weight.format == f"gguf.{name}"


def test_experts_are_picked_from_a_stack() -> None:
    raw = torch.from_numpy(random_rows("q4_0", 6, 2))
    stack = GgmlWeight.from_name(raw, "q4_0", (3, 2, 64))
    whole = stack.dequantize()
    assert torch.equal(stack.gather(torch.tensor([2, 0])), whole[[2, 0]])
    assert torch.equal(stack.rows(1, 2).dequantize(), whole[1:2])


def test_big_weights_are_decoded_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = GgmlWeight.from_name(torch.from_numpy(random_rows("q6_k", 7, 3)), "q6_k", (7, 768))
    whole = weight.dequantize()
    seen = []
    decode = DECODERS["q6_k"]

    def watched(part: torch.Tensor) -> torch.Tensor:
        seen.append(part.shape[0])
        return decode(part)

    monkeypatch.setitem(DECODERS, "q6_k", watched)
    monkeypatch.setattr(blocks_module, "_CHUNK_CPU", 1024)
    assert torch.equal(weight.dequantize(), whole)
    assert seen == [4, 4, 4, 4, 4, 1]


def test_what_does_not_fit_is_refused() -> None:
    raw = torch.zeros(36, dtype=torch.uint8)
    with pytest.raises(ValueError, match="whole q4_0 blocks of 32"):
        GgmlWeight.from_name(raw, "q4_0", (2, 31))
    with pytest.raises(ValueError, match="take 54 bytes, not 36"):
        GgmlWeight.from_name(raw, "q4_0", (3, 32))
    with pytest.raises(ValueError, match="must be bytes"):
        GgmlWeight.from_name(raw.float(), "q4_0", (2, 32))
    with pytest.raises(KeyError):
        GgmlWeight.from_name(raw, "q4_9", (2, 32))
    one = GgmlWeight.from_name(raw, "q4_0", (2, 32))
    other = GgmlWeight.from_name(raw[:34], "q8_0", (1, 32))
    with pytest.raises(ValueError, match="cannot follow"):
        GgmlWeight.concat([one, other])
    with pytest.raises(ValueError, match="nothing"):
        GgmlWeight.concat([])


@pytest.mark.parametrize("name", EXACT)
def test_encoding_is_the_packages_own(name: str) -> None:
    weight = torch.randn(6, 512, generator=torch.Generator().manual_seed(0))
    packed = GgmlQuantizer().quantize(weight, name)
    expected = gguf.quantize(weight.numpy(), GGMLQuantizationType[name.upper()])
    assert np.array_equal(packed.blocks.numpy().reshape(-1), expected.view(np.uint8).reshape(-1))
    assert packed.shape == (6, 512)
    parts = GgmlQuantizer().serialize(packed)
    again = GgmlWeight(parts["data"], BY_NUMBER[parts["dtype"]], parts["shape"])
    assert torch.equal(again.blocks, packed.blocks)


def test_what_cannot_be_encoded_says_so() -> None:
    quantizer = GgmlQuantizer()
    # The list that messages show is the whole truth.
    for name in set(BY_NAME) - set(ENCODABLE):
        with pytest.raises(ConfigError):
            quantizer.quantize(torch.zeros(1, 256), name)
