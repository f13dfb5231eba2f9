"""HQQ weights, the optimization, and the hqq package's own answers."""

from __future__ import annotations

import warnings

import pytest
import torch

from tramontane.errors import CheckpointError, ConfigError
from tramontane.nn import PackedStack
from tramontane_hqq.quantizer import HqqQuantizer
from tramontane_hqq.weight import HqqWeight, pack, unpack

hqq = HqqQuantizer()


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("rows", [40, 64])
def test_rows_are_packed_together(bits, rows):
    codes = torch.randint(0, 1 << bits, (rows, 6), dtype=torch.uint8)
    assert torch.equal(unpack(pack(codes, bits), bits)[:rows], codes)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_what_codes_mean(axis, bits):
    torch.manual_seed(0)
    shape = (64, 16) if axis == 0 else (16, 64)
    codes = torch.randint(0, 1 << bits, shape, dtype=torch.uint8)
    along = (1, 16) if axis == 0 else (16, 1)
    scales, zeros = torch.rand(along), torch.rand(along)
    weight = HqqWeight(pack(codes, bits), scales, zeros, (32, 32), bits=bits, axis=axis)
    plain = ((codes - zeros) * scales).view(32, 32)
    assert weight.group_size == 64
    torch.testing.assert_close(weight.dequantize(), plain)
    index = torch.tensor([31, 0, 7])
    torch.testing.assert_close(weight.gather(index), plain[index])
    part = weight.rows(4, 20).rows(1, 9)
    torch.testing.assert_close(part.dequantize(), plain[5:13])
    torch.testing.assert_close(part.gather(index[1:]), plain[5:13][index[1:]])
    assert part.nbytes == weight.nbytes // 4


@pytest.mark.parametrize("bits", [4, 8])
def test_optimized_zeros_lessen_the_error(bits):
    torch.manual_seed(0)
    weight = torch.randn(128, 64) * (1 + 4 * (torch.rand(128, 64) > 0.99))
    packed = hqq.quantize(weight, f"HQQ{bits}")
    groups = weight.reshape(64, -1)
    low, high = groups.amin(0, keepdim=True), groups.amax(0, keepdim=True)
    step = (high - low) / ((1 << bits) - 1)
    plain = (((groups - low) / step).round() * step + low).view(weight.shape)
    error = (packed.dequantize() - weight).abs().mean()
    assert error <= (plain - weight).abs().mean()
    parts = hqq.serialize(packed)
    assert torch.equal(hqq.deserialize(parts).dequantize(), packed.dequantize())
    assert hqq.packed_bytes(weight.shape, f"hqq{bits}") == packed.nbytes


@pytest.mark.peer
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_decodes_as_the_hqq_package(bits, axis):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        package = pytest.importorskip("hqq.core.quantize", reason="hqq is not installed")
        torch.manual_seed(0)
        weight = torch.randn(128, 64)
        codes, meta = package.Quantizer.quantize(
            weight, nbits=bits, group_size=64, axis=axis, device="cpu", compute_dtype=torch.float32
        )
        meta["compute_dtype"] = torch.float32
        theirs = package.Quantizer.dequantize(codes, meta)
    ours = HqqWeight(codes, meta["scale"], meta["zero"], weight.shape, bits=bits, axis=axis)
    torch.testing.assert_close(ours.dequantize(), theirs)
    if axis == 0 and bits in (4, 8):
        error = (hqq.quantize(weight, f"hqq{bits}").dequantize() - weight).abs().mean()
        assert error <= 1.01 * (theirs - weight).abs().mean()


def test_stacks_are_packed_one_by_one():
    weight = torch.randn(3, 64, 8)
    packed = hqq.quantize(weight, "hqq4")
    assert isinstance(packed, PackedStack)
    assert torch.equal(packed.dequantize()[2], hqq.quantize(weight[2], "hqq4").dequantize())


def test_what_is_refused():
    with pytest.raises(ConfigError, match="no type of hqq"):
        hqq.quantize(torch.randn(64, 2), "hqq3")
    with pytest.raises(ConfigError, match="multiple of 64"):
        hqq.quantize(torch.randn(3, 5), "hqq4")
    with pytest.raises(ConfigError, match="not finite"):
        hqq.quantize(torch.full((64, 2), torch.inf), "hqq4")
    weight = hqq.quantize(torch.randn(64, 4), "hqq4")
    with pytest.raises(ConfigError, match="no whole HQQ weight"):
        hqq.serialize(weight.rows(0, 8))
    with pytest.raises(ValueError, match="cannot be joined"):
        HqqWeight.concat([weight, weight])
    parts = hqq.serialize(weight)
    for changes in (
        {"bits": 8},
        {"bits": 5},
        {"axis": 1},
        {"axis": 2},
        {"shape": (64, 5)},
        {"shape": (0, 4)},
        {"group_size": 32},
        {"weight": parts["weight"][:-1]},
        {"zeros": parts["zeros"][:, :-1]},
    ):
        with pytest.raises(CheckpointError):
            hqq.deserialize({**parts, **changes})
