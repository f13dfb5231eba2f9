"""Native products with weights of few bits in groups, on every instruction set this machine has."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from tramontane.errors import CheckpointError
from tramontane.kernels import dispatch, reference
from tramontane.nn import GatedMLP, GroupAffineWeight, PackedLinear, bind_kernels, pack_bits
from tramontane_kernels_cpu.library import native, why_not
from tramontane_kernels_cpu.linear import packed_linear, prepare
from tramontane_testkit.kernels import assert_odd_activations_stay_in_their_token

pytestmark = pytest.mark.skipif(native() is None, reason=str(why_not()))

CPU = torch.device("cpu")
BITS = (2, 3, 4, 5, 6, 8)


def random_weight(
    bits: int, rows: int, cols: int, group: int, dtype: torch.dtype = torch.float32, seed: int = 0
) -> GroupAffineWeight:
    """Every code equally likely, half of the scales negative."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 1 << bits, (rows, cols), generator=generator)
    shape = (rows, cols // group)
    scales = (torch.rand(shape, generator=generator) + 0.1) * 0.01
    scales *= torch.randint(0, 2, shape, generator=generator) * 2 - 1
    biases = -scales * (torch.rand(shape, generator=generator) * (1 << bits))
    return GroupAffineWeight(pack_bits(codes, bits), scales.to(dtype), biases.to(dtype), bits=bits)


def whole_numbers(tokens: int, cols: int) -> Tensor:
    """Activations that int8 holds exactly: whole, and 127 in every group of 32."""
    x = torch.randint(-127, 128, (tokens, cols), generator=torch.Generator().manual_seed(1)).float()
    x[:, ::32] = 127
    return x


def close(got: Tensor, x: Tensor, weight: GroupAffineWeight) -> bool:
    """Whether nothing is lost but float32's rounding of sums."""
    values = weight.dequantize(torch.float64)
    size = x.double().abs() @ values.abs().T
    return bool(((got - x.double() @ values.T).abs() <= 3e-6 * size).all())


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("rows", [1, 8, 17, 40])
@pytest.mark.parametrize(
    ("group", "cols", "dtype"),
    [
        (32, 96, torch.float16),
        (64, 320, torch.bfloat16),
        (128, 768, torch.float32),
        (160, 160, torch.float32),  # a group a row
    ],
)
def test_exact_activations_give_the_exact_product(
    bits: int, rows: int, group: int, cols: int, dtype: torch.dtype
) -> None:
    weight = random_weight(bits, rows, cols, group, dtype)
    packed = prepare(weight)
    for tokens in (1, 2, 3, 4, 5, 9, 17, 33, 70):
        x = whole_numbers(tokens, cols)
        assert close(packed_linear(x, packed), x, weight), tokens


@pytest.mark.parametrize("bits", BITS)
def test_rounding_of_activations_is_all_that_is_lost(bits: int) -> None:
    weight = random_weight(bits, 96, 1024, 64)
    x = torch.randn(7, 1024, generator=torch.Generator().manual_seed(2))
    groups = x.view(7, -1, 32)
    step = groups.abs().amax(-1, keepdim=True) / 127
    rounded = ((groups / step).round() * step).view(7, 1024)
    got = packed_linear(x, prepare(weight))
    values = weight.dequantize()
    torch.testing.assert_close(got, rounded @ values.T, rtol=1e-4, atol=1e-4)
    want = reference.packed_linear(x, weight)
    assert (got - want).norm() <= 0.02 * want.norm()
    alone = torch.cat([packed_linear(row[None], prepare(weight)) for row in x])
    assert torch.equal(got, alone)
    assert torch.equal(packed_linear(x.repeat(10, 1), prepare(weight)), alone.repeat(10, 1))


def test_scales_and_minima_of_two_types_lose_nothing() -> None:
    """GPTQ: scales in float16, their product with a zero point in float32."""
    weight = random_weight(4, 24, 256, 128, torch.float16)
    zeros = torch.randint(1, 17, weight.scales.shape)
    mixed = GroupAffineWeight(
        weight.codes, weight.scales, -zeros.float() * weight.scales.float(), bits=4
    )
    x = whole_numbers(5, 256)
    assert close(packed_linear(x, prepare(mixed)), x, mixed)


def test_columns_in_an_order_of_their_own() -> None:
    plain = random_weight(4, 24, 128, 32)
    order = torch.randperm(128, generator=torch.Generator().manual_seed(3))
    weight = GroupAffineWeight(plain.codes, plain.scales, plain.biases, bits=4, order=order)
    x = torch.zeros(3, 128)
    x[:, order] = whole_numbers(3, 128)
    assert close(packed_linear(x, prepare(weight)), x, weight)
    module = GatedMLP(128, 24)
    for name in ("gate_proj", "up_proj"):
        module.set_submodule(name, PackedLinear(weight))
    module.set_submodule("down_proj", PackedLinear(random_weight(4, 128, 32, 32).rows(0, 128)))
    bind_kernels(module, CPU, torch.float32)
    assert module._whole is None  # where activations would meet the wrong columns


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_odd_activations_stay_in_their_token(bits: int) -> None:
    weight = random_weight(bits, 24, 256, 64)
    packed = prepare(weight)
    assert_odd_activations_stay_in_their_token(partial(packed_linear, weight=packed))
    assert packed_linear(torch.full((1, 256), 1e30), packed).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("part", ["scales", "biases"])
def test_a_scale_that_is_no_number_is_refused(part: str, dtype: torch.dtype) -> None:
    weight = random_weight(4, 20, 128, 64, dtype)
    getattr(weight, part)[17, 1] = torch.inf
    with pytest.raises(CheckpointError, match=r"affine\.4.*scale is not a finite number"):
        prepare(weight)


def test_extreme_scales_are_kept_as_they_are() -> None:
    weight = random_weight(4, 16, 64, 32)
    weight.scales[0], weight.biases[0] = 1e-42, 0.0  # denormal
    weight.scales[1], weight.biases[1] = 0.0, -0.0
    weight.scales[2], weight.biases[2] = 1e30, -1e30
    x = whole_numbers(2, 64)
    assert close(packed_linear(x, prepare(weight)), x, weight)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_panels_give_back_what_they_were_made_of(bits: int, dtype: torch.dtype) -> None:
    weight = random_weight(bits, 21, 192, 64, dtype)
    if bits == 4:  # two types, of which the wider serves both
        codes, scales, biases = weight.parts
        weight = GroupAffineWeight(codes.clone(), scales, biases.float(), bits=bits)
    before = [part.clone() for part in weight.parts]
    values, size = weight.dequantize(), weight.nbytes
    prepare(weight)
    assert weight._parts is None  # nothing is in memory twice
    for got, want in zip(weight.parts, before, strict=True):
        assert got.dtype == want.dtype
        assert torch.equal(got, want)
    index = torch.tensor([20, 0, 7])
    assert torch.equal(weight.gather(index), values[index])
    assert torch.equal(weight.rows(3, 9).dequantize(), values[3:9])
    assert weight.nbytes == size


def test_who_multiplies_what() -> None:
    def bound(bits: int, group: int) -> dispatch.Operator:
        weight = random_weight(bits, 4, 2 * group, group)
        return dispatch.bind(
            "packed_linear", CPU, dtype=torch.float32, format=weight.format, **weight.facts
        )

    assert bound(4, 64) is packed_linear
    assert bound(4, 48) is reference.packed_linear  # groups of no whole blocks of 32
    assert bound(4, 16) is reference.packed_linear
    assert bound(1, 64) is reference.packed_linear


def test_whole_modules_take_them() -> None:
    module = GatedMLP(64, 96, bias=True)
    generator = torch.Generator().manual_seed(5)
    for name, rows, cols in (("gate", 96, 64), ("up", 96, 64), ("down", 64, 96)):
        weight = random_weight(4, rows, cols, 32, seed=rows)
        bias = torch.randn(rows, generator=generator)
        module.set_submodule(f"{name}_proj", PackedLinear(weight, bias))
    bind_kernels(module, CPU, torch.float32)
    assert module._whole is not None
    x = torch.randn(9, 64, generator=generator)
    whole = module(x)
    module._whole = None
    assert isinstance(module.gate_proj, nn.Module)
    torch.testing.assert_close(whole, module(x), rtol=2e-3, atol=2e-3)
