"""Native products with codes as they are stored: FP8, HQQ, and tables of four bits."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from tramontane.errors import CheckpointError
from tramontane.kernels import dispatch, reference
from tramontane.nn import GatedMLP, PackedLinear, bind_kernels
from tramontane.protocols import PackedWeight
from tramontane_bitsandbytes.weight import CodebookWeight
from tramontane_fp8.quantizer import Fp8Quantizer
from tramontane_fp8.weight import Fp8Weight
from tramontane_hqq.quantizer import HqqQuantizer
from tramontane_hqq.weight import HqqWeight, pack
from tramontane_kernels_cpu.library import native, why_not
from tramontane_kernels_cpu.linear import packed_linear, prepare
from tramontane_testkit.kernels import assert_odd_activations_stay_in_their_token

pytestmark = pytest.mark.skipif(native() is None, reason=str(why_not()))

CPU = torch.device("cpu")
TOKENS = (1, 2, 3, 4, 5, 9, 17, 31, 33)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fp8(rows: int, cols: int, tile: tuple[int, int], first_row: int = 0) -> Fp8Weight:
    """Every finite number of the format equally likely."""
    codes = torch.randint(0, 255, (rows, cols), generator=generator(), dtype=torch.uint8)
    codes[(codes & 0x7F) == 0x7F] = 0x80  # minus zero
    down, across = -(-(first_row + rows) // tile[0]), -(-cols // tile[1])
    scales = torch.rand(down, across, generator=generator(1)) * 0.01 + 0.001
    return Fp8Weight(codes.view(torch.float8_e4m3fn), scales, tile, first_row=first_row)


def hqq(
    rows: int,
    cols: int,
    bits: int,
    axis: int = 0,
    size: int = 64,
    dtype: torch.dtype = torch.float32,
) -> HqqWeight:
    """Every code equally likely."""
    count = rows * cols // size
    matrix = (size, count) if axis == 0 else (count, size)
    codes = torch.randint(0, 1 << bits, matrix, generator=generator())
    shape = (1, count) if axis == 0 else (count, 1)
    scales = (torch.rand(shape, generator=generator(1)) * 0.01 + 0.001).to(dtype)
    zeros = (torch.rand(shape, generator=generator(2)) * (1 << bits)).to(dtype)
    return HqqWeight(pack(codes, bits), scales, zeros, (rows, cols), bits=bits, axis=axis)


def nf4(rows: int, cols: int, block: int) -> CodebookWeight:
    codes = torch.randint(0, 256, (rows * cols // 2,), generator=generator(), dtype=torch.uint8)
    scales = torch.rand(rows * cols // block, generator=generator(1)) + 0.1
    table = torch.randn(16, generator=generator(2)).sort().values
    return CodebookWeight(codes, scales, table, (rows, cols), kind="nf4", block=block)


def check(weight: PackedWeight) -> None:
    """Nothing is lost but float32's rounding of sums, and no token depends on its neighbours."""
    rows, cols = weight.shape
    packed = prepare(weight)
    values = weight.dequantize(torch.float64)
    x = torch.randn(max(TOKENS), cols, generator=generator(3))
    want = x.double() @ values.T
    # Codes and zeros are multiplied apart where rows share scales, which are all but ends of these.
    size = x.double().abs() @ (values.abs() + values.abs().amax()).T
    for tokens in TOKENS:
        got = packed_linear(x[:tokens], packed)
        assert got.shape == (tokens, rows)
        assert bool(((got - want[:tokens]).abs() <= 2e-6 * size[:tokens]).all()), tokens
    few = x[:9]
    alone = torch.cat([packed_linear(row[None], packed) for row in few])
    assert torch.equal(packed_linear(few, packed), alone)
    assert torch.equal(packed.floats(0, rows), weight.dequantize())


@pytest.mark.parametrize(
    ("shape", "tile"),
    [
        ((17, 96), (17, 96)),  # one scale for all
        ((40, 100), (1, 100)),  # one a row, of a width that fills no vectors
        ((130, 300), (128, 128)),
        ((5, 7), (2, 3)),
        ((1, 1), (1, 1)),
    ],
)
def test_fp8(shape: tuple[int, int], tile: tuple[int, int]) -> None:
    check(fp8(*shape, tile))


def test_fp8_that_begins_within_a_tile() -> None:
    whole = fp8(300, 128, (128, 64))
    part = whole.rows(70, 300)
    assert part.first_row == 70
    check(part)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("shape", [(64, 32), (192, 96), (128, 1120)])
def test_hqq_whose_rows_share_scales(bits: int, shape: tuple[int, int]) -> None:
    check(hqq(*shape, bits))


def test_hqq_with_narrow_scales_and_other_groups() -> None:
    check(hqq(128, 64, 4, size=128, dtype=torch.float16))
    check(hqq(96, 64, 4, size=32, dtype=torch.bfloat16))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_hqq_whose_columns_share_scales(bits: int) -> None:
    for weight in (hqq(40, 192, bits, axis=1), hqq(40, 192, bits, axis=1).rows(3, 20)):
        x = torch.randint(-127, 128, (5, 192), generator=generator(3)).float()
        x[:, ::32] = 127  # so that int8 holds it exactly
        values = weight.dequantize(torch.float64)
        got = packed_linear(x, prepare(weight))
        bound = 3e-6 * (x.double().abs() @ (values.abs() + values.abs().amax()).T)
        assert bool(((got - x.double() @ values.T).abs() <= bound).all())


@pytest.mark.parametrize(
    ("shape", "block"), [((17, 64), 64), ((40, 384), 64), ((3, 256), 256), ((5, 12), 4)]
)
def test_tables_of_four_bits(shape: tuple[int, int], block: int) -> None:
    check(nf4(*shape, block))


@pytest.mark.parametrize("weight", [fp8(24, 256, (24, 256)), hqq(64, 256, 4), nf4(24, 256, 64)])
def test_odd_activations_stay_in_their_token(weight: PackedWeight) -> None:
    packed = prepare(weight)
    assert_odd_activations_stay_in_their_token(partial(packed_linear, weight=packed))


def test_numbers_that_are_none_are_refused() -> None:
    weight = fp8(4, 64, (4, 64))
    weight.codes.view(torch.uint8)[2, 9] = 0xFF
    with pytest.raises(CheckpointError, match=r"fp8\.tensor.* holds NaN"):
        prepare(weight)
    scaled = fp8(4, 64, (1, 64))
    scaled.scales[3] = torch.inf
    with pytest.raises(CheckpointError, match=r"fp8\.channel.* scale that is not a finite"):
        prepare(scaled)
    crossed = hqq(64, 64, 4)
    crossed.zeros[0, 3] = torch.nan
    with pytest.raises(CheckpointError, match=r"hqq\.4.* scale that is not a finite"):
        prepare(crossed)


def test_codes_are_read_where_they_lie() -> None:
    for weight in (fp8(8, 64, (1, 64)), hqq(64, 64, 4), nf4(8, 64, 64)):
        codes: Tensor = weight.codes
        assert prepare(weight).data.data_ptr() == codes.data_ptr()


def test_who_multiplies_what() -> None:
    def bound(weight: PackedWeight) -> dispatch.Operator:
        return dispatch.bind(
            "packed_linear", CPU, dtype=torch.float32, format=weight.format, **weight.facts
        )

    for weight in (fp8(3, 5, (2, 2)), hqq(64, 32, 4), nf4(2, 64, 64), hqq(2, 64, 3, axis=1)):
        assert bound(weight) is packed_linear, weight
    scattered = nf4(3, 32, 96)
    odd = hqq(64, 48, 4), hqq(32, 64, 4), hqq(64, 32, 4).rows(0, 9), hqq(4, 32, 4, 1), scattered
    for weight in odd:
        assert bound(weight) is reference.packed_linear, weight


@pytest.mark.parametrize("kind", ["fp8", "hqq4", "hqq8"])
def test_whole_modules_take_them(kind: str) -> None:
    quantizer = Fp8Quantizer() if kind == "fp8" else HqqQuantizer()
    module = GatedMLP(64, 128, bias=True)
    for name, rows, cols in (("gate", 128, 64), ("up", 128, 64), ("down", 64, 128)):
        weight = torch.randn(rows, cols, generator=generator(rows)) * cols**-0.5
        packed = PackedLinear(quantizer.quantize(weight, kind), torch.randn(rows))
        module.set_submodule(f"{name}_proj", packed)
    bind_kernels(module, CPU, torch.float32)
    assert module._whole is not None
    x = torch.randn(40, 64, generator=generator(5))
    whole = torch.cat([module(x[:9]), module(x[9:])])  # the rest, of 31, are few yet
    module._whole = None
    torch.testing.assert_close(whole, module(x), rtol=1e-4, atol=1e-5)


def test_gate_and_up_whose_rows_are_computed_in_other_orders_are_no_whole() -> None:
    module = GatedMLP(64, 128)
    for name, weight in (
        ("gate", hqq(128, 64, 4)),
        ("up", fp8(128, 64, (128, 64))),
        ("down", hqq(64, 128, 4)),
    ):
        module.set_submodule(f"{name}_proj", PackedLinear(weight))
    bind_kernels(module, CPU, torch.float32)
    assert module._whole is None
