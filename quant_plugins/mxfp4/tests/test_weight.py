"""Packing and unpacking, against transformers, the gguf package and the specification."""

from __future__ import annotations

from types import SimpleNamespace

import gguf
import pytest
import torch
from torch.nn import functional as F
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from tramontane.errors import ConfigError
from tramontane_mxfp4 import weight as weight_module
from tramontane_mxfp4.quantizer import Mxfp4Quantizer
from tramontane_mxfp4.weight import Mxfp4Weight

GGUF_TYPE = gguf.GGMLQuantizationType.MXFP4
quantizer = Mxfp4Quantizer()


def random_stack(*shape: int, seed: int = 0) -> Mxfp4Weight:
    """Every code, scales that keep float32 finite; ``shape`` counts blocks along the last axis."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 256, (*shape, 16), generator=generator, dtype=torch.uint8)
    scales = torch.randint(90, 160, shape, generator=generator, dtype=torch.uint8)
    return Mxfp4Weight(codes, scales)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk", [64, 1 << 17])
def test_decoding_equals_transformers(
    dtype: torch.dtype, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_module, "_CHUNK_CPU", chunk)
    weight = random_stack(3, 10, 2)
    expected = convert_moe_packed_tensors(weight.codes, weight.scales, dtype=dtype)
    assert torch.equal(weight.dequantize(dtype), expected.mT)


def test_every_scale_means_what_the_specification_says() -> None:
    codes = torch.full((256, 1, 16), 0x22, dtype=torch.uint8)  # 1.0
    weight = Mxfp4Weight(codes, torch.arange(256, dtype=torch.uint8)[:, None])
    found = weight.dequantize(torch.float64)[:, 0]
    assert torch.equal(found[:255], torch.exp2(torch.arange(255).double() - 127))
    assert bool(found[255].isnan())


def test_blocks_are_those_of_gguf() -> None:
    weight = random_stack(6, 3)
    expected = torch.from_numpy(gguf.dequantize(weight.blocks.numpy(), GGUF_TYPE))
    assert torch.equal(weight.dequantize(), expected)


def test_packing_equals_gguf() -> None:
    values = normal(8, 96) * torch.exp2(torch.arange(-4.0, 4.0))[:, None]
    values[0, :32] = 0
    packed = quantizer.quantize(values, "MXFP4")
    assert torch.equal(packed.blocks, torch.from_numpy(gguf.quantize(values.numpy(), GGUF_TYPE)))
    error = (packed.dequantize() - values).abs()
    largest = values.view(8, 3, 32).abs().amax(-1).repeat_interleave(32, -1)
    assert bool((error <= largest / 4).all())  # 6 stands for all up to 8, 4 for all up to 5


def test_what_the_format_has_is_kept_exactly() -> None:
    weight = random_stack(5, 4)
    again = quantizer.quantize(weight.dequantize().bfloat16())
    assert torch.equal(again.dequantize(), weight.dequantize())
    tiny = torch.full((1, 32), 2.0**-128)
    assert torch.equal(quantizer.quantize(tiny).dequantize(), tiny)


def test_of_two_neighbours_the_even_one_is_taken() -> None:
    row = torch.zeros(1, 32)
    row[0, :10] = torch.tensor([4.0, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, -0.25, -2.5])
    found = quantizer.quantize(row).dequantize()[0, :10]
    assert found.tolist() == [4.0, 0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0, 0.0, -2.0]
    row[0, :3] = torch.tensor([7.9, -6.9, 5.1])
    assert quantizer.quantize(row).dequantize()[0, :3].tolist() == [6.0, -6.0, 6.0]


@pytest.mark.parametrize(
    ("weight", "type_name", "message"),
    [
        (torch.zeros(2, 33), "mxfp4", r"shape \[2, 33\] cannot be mxfp4"),
        (torch.zeros(64), "mxfp4", r"shape \[64\] cannot be mxfp4"),
        (torch.zeros(2, 32), "mxfp6", "'mxfp6' is no type of mxfp4"),
        (torch.full((2, 32), torch.nan), "mxfp4", "not finite"),
    ],
)
def test_what_cannot_be_packed_is_refused(
    weight: torch.Tensor, type_name: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        quantizer.quantize(weight, type_name)


def test_sizes_and_parts() -> None:
    stack = quantizer.quantize(normal(4, 6, 64))
    assert stack.shape == (4, 6, 64)
    assert stack.nbytes == quantizer.packed_bytes((4, 6, 64), "mxfp4") == 4 * 6 * 2 * 17
    assert quantizer.packed_bytes((4, 6, 65)) is None
    parts = quantizer.serialize(stack)
    again = Mxfp4Weight(parts["blocks"], parts["scales"])
    assert torch.equal(again.dequantize(), stack.dequantize())


def test_rows_of_any_axis_share_memory() -> None:
    stack = random_stack(4, 6, 2)
    dense = stack.dequantize()
    up = stack.part(slice(1, None, 2), axis=1)
    assert up.codes.data_ptr() == stack.codes[0, 1].data_ptr()
    assert up.nbytes * 2 == stack.nbytes
    assert torch.equal(up.dequantize(), dense[:, 1::2])
    assert torch.equal(up.expert(2).dequantize(), dense[2:3, 1::2])
    assert torch.equal(up.blocks, stack.blocks[:, 1::2])
    assert torch.equal(stack.rows(1, 3).dequantize(), dense[1:3])
    assert torch.equal(stack.gather(torch.tensor([3, 0, 3])), dense[[3, 0, 3]])
    joined = Mxfp4Weight.concat([stack.rows(2, 4), stack.rows(0, 1)])
    assert torch.equal(joined.dequantize(), dense[[2, 3, 0]])
    assert stack.to(torch.device("cpu")) is stack
    with pytest.raises(ValueError, match="last axis"):
        stack.part(slice(0, 1), axis=2)
    with pytest.raises(ValueError, match="cannot follow"):
        Mxfp4Weight.concat([stack, random_stack(4, 6, 3)])


def test_parts_that_do_not_go_together_are_refused() -> None:
    codes, scales = torch.zeros(4, 2, 16, dtype=torch.uint8), torch.zeros(4, 2, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"\[4, 2, 16\] and scales of shape \[4, 1\]"):
        Mxfp4Weight(codes, scales[:, :1])
    with pytest.raises(ValueError, match="are bytes"):
        Mxfp4Weight(codes, scales.float())
    with pytest.raises(ConfigError, match=r"test\.other is not mxfp4"):
        quantizer.serialize(SimpleNamespace(format="test.other"))


def test_native_kernels_multiply_with_it() -> None:
    library = pytest.importorskip("tramontane_kernels_cpu.library")
    if library.why_not():
        pytest.skip(library.why_not())
    from tramontane_kernels_cpu.linear import packed_linear, prepare, supports

    assert supports(format=Mxfp4Weight.format)
    stack = quantizer.quantize(normal(3, 20, 64)).part(slice(1, None, 2), axis=1)
    x = normal(4, 64, seed=1)
    found = packed_linear(x, prepare(stack.expert(1)))
    expected = F.linear(x, stack.dequantize()[1])
    assert float((found - expected).norm() / expected.norm()) < 0.01  # activations are int8
