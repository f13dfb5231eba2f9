"""Packed weights and the quantizer, against float8 arithmetic of torch and transformers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers.integrations.finegrained_fp8 import _dequantize_fp8_weight

from tramontane.errors import CheckpointError, ConfigError
from tramontane.kernels.reference import packed_linear
from tramontane.nn import PackedStack
from tramontane_fp8.quantizer import Fp8Quantizer
from tramontane_fp8.weight import Fp8Weight

E4M3 = torch.float8_e4m3fn


def made(*shape: int, tile: tuple[int, int], seed: int = 0) -> Fp8Weight:
    """Random codes, the largest and subnormal ones among them, and random scales."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    codes[codes & 0x7F == 0x7F] = 0x7E  # not a number
    grid = (-(-shape[-2] // tile[0]), -(-shape[-1] // tile[1]))
    scales = torch.rand(*shape[:-2], *grid, generator=generator) + 0.1
    return Fp8Weight(codes.view(E4M3), scales, tile)


CASES = {
    "tensor": made(20, 48, tile=(20, 48)),
    "channel": made(20, 48, tile=(1, 48)),
    "block": made(32, 48, tile=(16, 16)),
    "block, cut at the edges": made(37, 41, tile=(16, 8)),
    "one block, larger than the weight": made(5, 6, tile=(128, 128)),
    "stack of tensors": made(3, 20, 48, tile=(20, 48)),
    "stack of blocks": made(3, 20, 41, tile=(16, 8)),
}


@pytest.fixture(params=list(CASES))
def weight(request: pytest.FixtureRequest) -> Fp8Weight:
    return CASES[request.param]


def test_numbers_are_those_of_transformers(weight: Fp8Weight) -> None:
    one = weight.scales.shape[-2:] == (1, 1)
    block = None if one else list(weight.tile)
    expected = _dequantize_fp8_weight(weight.codes, weight.scales, block, torch.float32)
    assert torch.equal(weight.dequantize(), expected)
    assert torch.equal(weight.dequantize(torch.bfloat16), expected.bfloat16())
    assert weight.nbytes == weight.codes.numel() + 4 * weight.scales.numel()


def test_every_code_means_what_torch_says() -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(E4M3).view(16, 16)
    weight = Fp8Weight(codes, torch.tensor([[2.0]]), (16, 16))
    torch.testing.assert_close(
        weight.dequantize(), codes.float() * 2, rtol=0, atol=0, equal_nan=True
    )


def test_parts_are_parts_of_the_whole(weight: Fp8Weight) -> None:
    dense = weight.dequantize()
    for start, stop in ((0, 1), (1, 3), (2, weight.shape[0]), (0, weight.shape[0])):
        part = weight.rows(start, stop)
        assert torch.equal(part.dequantize(), dense[start:stop])
        assert part.codes.data_ptr() == weight.codes[start:].data_ptr()
        again = part.rows(part.shape[0] // 2, part.shape[0])
        assert torch.equal(again.dequantize(), dense[start + part.shape[0] // 2 : stop])
    index = torch.tensor([2, 0, 2])
    assert torch.equal(weight.gather(index), dense[index])
    if len(weight.shape) == 3:
        assert torch.equal(weight.part(slice(5, 19), 1).dequantize(), dense[:, 5:19])
        assert torch.equal(weight.expert(1).dequantize(), dense[1:2])
    else:
        assert torch.equal(weight.rows(3, 5).gather(torch.tensor([1])), dense[4:5])
    with pytest.raises(ValueError, match="neighbouring rows"):
        weight.part(slice(0, 2), len(weight.shape) - 1)


def test_parts_side_by_side_are_the_whole_again(weight: Fp8Weight) -> None:
    dense = weight.dequantize()
    cut = weight.tile[0] if weight.format == "fp8.block" and len(weight.shape) == 2 else 2
    if cut < weight.shape[0]:
        parts = [weight.rows(0, cut), weight.rows(cut, weight.shape[0])]
        assert torch.equal(Fp8Weight.concat(parts).dequantize(), dense)


def test_tensors_of_different_scales_become_one_by_channel() -> None:
    parts = [made(n, 8, tile=(n, 8), seed=n) for n in (3, 5)]
    both = Fp8Weight.concat(parts)
    assert both.format == "fp8.channel"
    assert torch.equal(both.dequantize(), torch.cat([p.dequantize() for p in parts]))


def test_what_does_not_fit_side_by_side_is_refused() -> None:
    block, other = CASES["block"], CASES["tensor"]
    for parts in (
        [],
        [block, other],
        [block.rows(0, 8), block.rows(8, 32)],
        [block, made(8, 40, tile=(8, 40))],
    ):
        with pytest.raises(ValueError, match=r"cannot follow|nothing to concatenate"):
            Fp8Weight.concat(parts)


@pytest.mark.parametrize(
    ("codes", "scales", "tile", "message"),
    [
        (torch.zeros(4, 4), torch.ones(1, 1), (4, 4), "codes are float8_e4m3fn"),
        (torch.zeros(4, 4, dtype=torch.float8_e5m2), torch.ones(1, 1), (4, 4), "float8_e5m2"),
        (torch.zeros(4, 4).to(E4M3), torch.ones(2, 1), (4, 4), r"ask for \[1, 1\]"),
        (torch.zeros(4).to(E4M3), torch.ones(1, 1), (4, 4), "a matrix, or a stack"),
        (torch.zeros(4, 4).to(E4M3), torch.ones(1, 1), (0, 4), r"tiles of \[0, 4\]"),
    ],
)  # fmt: skip
def test_parts_that_do_not_go_together_are_refused(
    codes: Tensor, scales: Tensor, tile: tuple[int, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Fp8Weight(codes, scales, tile)


def test_the_reference_kernel_multiplies_with_it() -> None:
    for weight in (CASES["channel"], CASES["block, cut at the edges"]):
        x = torch.randn(3, weight.shape[1], generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(packed_linear(x, weight), x @ weight.dequantize().T)
    stack = PackedStack([CASES["tensor"], CASES["tensor"]])
    assert stack.format == "fp8.tensor"


# Quantizing ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(24, 33), (3, 24, 33)])
def test_quantizing_takes_the_largest_number_to_the_largest_code(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    packed = Fp8Quantizer().quantize(weight, "FP8")
    assert packed.format == "fp8.tensor"
    assert packed.nbytes == Fp8Quantizer().packed_bytes(shape, "fp8")
    scale = weight.float().abs().amax((-2, -1), keepdim=True) / 448
    assert torch.equal(packed.scales, scale)
    assert torch.equal(packed.codes.float(), (weight.float() / scale).to(E4M3).float())
    assert bool((packed.codes.float().abs().amax((-2, -1)) == 448).all())
    # Three bits of mantissa: half a unit in the last place, or half the smallest subnormal.
    error = (packed.dequantize() - weight.float()).abs()
    bound = torch.maximum(weight.float().abs() / 16, scale * 2**-10) * 1.0001
    assert bool((error <= bound).all())


def test_zeros_stay_zeros() -> None:
    packed = Fp8Quantizer().quantize(torch.zeros(2, 3, 4), "fp8")
    assert torch.equal(packed.dequantize(), torch.zeros(2, 3, 4))


def test_parts_for_writers_make_the_weight_again(weight: Fp8Weight) -> None:
    parts = Fp8Quantizer().serialize(weight)
    again = Fp8Quantizer().deserialize(parts)
    assert again.format == weight.format
    assert torch.equal(again.dequantize(), weight.dequantize())
    for damaged in ({**parts, "tile": (3, 3)}, {"weight": parts["weight"]}):
        with pytest.raises(CheckpointError, match=r"scales of shape|parts lack 'scale'"):
            Fp8Quantizer().deserialize(damaged)


def test_what_cannot_be_packed_is_refused() -> None:
    quantizer = Fp8Quantizer()
    with pytest.raises(ConfigError, match="'f8q8' is no type of fp8"):
        quantizer.quantize(torch.ones(2, 2), "f8q8")
    with pytest.raises(ConfigError, match=r"shape \[4\] cannot be fp8"):
        quantizer.quantize(torch.ones(4), "fp8")
    with pytest.raises(ConfigError, match="not finite"):
        quantizer.quantize(torch.tensor([[1.0, float("nan")]]), "fp8")
    with pytest.raises(ConfigError, match="begins within a tile"):
        quantizer.serialize(CASES["block"].rows(3, 5))
    assert quantizer.packed_bytes((4,), "fp8") is None
