"""Native quantized linear against the reference, on every instruction set this machine has."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest
import torch

from tramontane.errors import CheckpointError
from tramontane.kernels import dispatch, reference
from tramontane.nn import NarrowLinear, multiplies_narrow
from tramontane_gguf.blocks import GgmlWeight
from tramontane_gguf.types import BY_NAME
from tramontane_kernels_cpu.library import native, why_not
from tramontane_kernels_cpu.linear import packed_linear, prepare
from tramontane_kernels_cpu.weights import PLAIN, TYPES, rounds_to_brain
from tramontane_testkit.kernels import assert_odd_activations_stay_in_their_token

pytestmark = pytest.mark.skipif(native() is None, reason=str(why_not()))

# Where float16 scales lie in a block, by type.
HALVES = {
    "q4_0": (0,),
    "q4_1": (0, 2),
    "q5_0": (0,),
    "q5_1": (0, 2),
    "q8_0": (0,),
    "q2_k": (80, 82),
    "q3_k": (108,),
    "q4_k": (0, 2),
    "q5_k": (0, 2),
    "q6_k": (208,),
    "iq4_nl": (0,),
    "iq4_xs": (0,),
}
NAMES = [n.removeprefix("gguf.") for n in TYPES if n.startswith("gguf.") and n not in PLAIN]


def random_weight(name: str, rows: int, cols: int, seed: int = 0) -> GgmlWeight:
    """Every code equally likely, scales positive and finite."""
    generator = torch.Generator().manual_seed(seed)
    kind = BY_NAME[name]
    n = rows * cols // kind.block_size
    blocks = torch.randint(0, 256, (n, kind.type_size), generator=generator, dtype=torch.uint8)
    for at in HALVES.get(name, ()):
        scale = (torch.rand(n, generator=generator) * 0.01 + 0.001).half()
        blocks[:, at : at + 2] = scale.view(torch.uint8).view(n, 2)
    if name == "mxfp4":
        exponent = torch.randint(118, 124, (n,), generator=generator)
        blocks[:, 0] = exponent.to(torch.uint8)
    if name == "q8_k":
        scale = torch.rand(n, generator=generator) * 0.01
        blocks[:, :4] = scale.view(torch.uint8).view(n, 4)
    return GgmlWeight.from_name(blocks.view(-1), name, (rows, cols))


def whole_numbers(tokens: int, cols: int) -> torch.Tensor:
    """Activations that int8 holds exactly: whole, and 127 in every group of 32."""
    x = torch.randint(-127, 128, (tokens, cols), generator=torch.Generator().manual_seed(1)).float()
    x[:, ::32] = 127
    return x


def exact(x: torch.Tensor, weight: GgmlWeight) -> torch.Tensor:
    return x.double() @ weight.dequantize().double().T


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rows", [1, 8, 17, 40])
def test_exact_activations_give_the_exact_product(name: str, rows: int) -> None:
    weight = random_weight(name, rows, 768)
    packed = prepare(weight)
    for tokens in (1, 2, 3, 4, 5, 9, 17, 33, 70):
        x = whole_numbers(tokens, 768)
        want = exact(x, weight)
        got = packed_linear(x, packed)
        assert got.shape == want.shape
        assert (got - want).abs().max() <= 2e-6 * want.abs().max(), (name, rows, tokens)


@pytest.mark.parametrize("name", NAMES)
def test_rounding_of_activations_is_all_that_is_lost(name: str) -> None:
    weight = random_weight(name, 96, 1024)
    x = torch.randn(7, 1024, generator=torch.Generator().manual_seed(2))
    size = 256 if (name.endswith("_k") and name != "q8_k") or name == "iq4_xs" else 32
    groups = x.view(7, -1, size)
    step = groups.abs().amax(-1, keepdim=True) / 127
    rounded = ((groups / step).round() * step).view(7, 1024)
    want = exact(rounded, weight)
    got = packed_linear(x, prepare(weight))
    assert (got - want).abs().max() <= 1e-5 * want.abs().max()
    reference_result = reference.packed_linear(x, weight)
    assert (got - reference_result).norm() <= 0.03 * reference_result.norm()


@pytest.mark.parametrize("name", NAMES)
def test_many_tokens_equal_one_at_a_time(name: str) -> None:
    weight = prepare(random_weight(name, 41, 512))
    x = torch.randn(131, 512, generator=torch.Generator().manual_seed(3))
    alone = torch.cat([packed_linear(row[None], weight) for row in x])
    for tokens in (2, 3, 7, 8, 15, 131):
        assert torch.equal(packed_linear(x[:tokens], weight), alone[:tokens]), tokens


@pytest.mark.parametrize("name", NAMES)
def test_extreme_codes_and_activations_do_not_overflow(name: str) -> None:
    x = torch.full((5, 512), 127.0)
    x[1] = -127
    x[2, ::2] = -127
    x[3, 1::4] = -127
    x[4, 1:] = 0
    for code in (0x00, 0x7F, 0x80, 0xFF):
        weight = random_weight(name, 17, 512)
        first = {"q8_0": 2, "q8_k": 4, "mxfp4": 1}.get(name, 0)  # scales that HALVES does not know
        scales = {at + i for at in HALVES.get(name, ()) for i in (0, 1)}
        codes = [i for i in range(first, BY_NAME[name].type_size) if i not in scales]
        weight.blocks.view(-1, BY_NAME[name].type_size)[:, codes] = code
        packed = prepare(weight)
        for tokens in (x, x.repeat(13, 1)):
            want = exact(tokens, weight)
            got = packed_linear(tokens, packed)
            assert (got - want).abs().max() <= 2e-6 * want.abs().max(), (name, code)


@pytest.mark.parametrize("name", ["q4_k", "q8_0"])
def test_rows_stored_in_another_order_are_packed_as_if_copied(name: str) -> None:
    stored = random_weight(name, 20, 512)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(4))
    chosen = stored.select(order).rows(3, 20)
    copied = GgmlWeight.from_name(chosen.blocks.view(-1), name, (17, 512))
    x = torch.randn(3, 512, generator=torch.Generator().manual_seed(5))
    assert torch.equal(packed_linear(x, prepare(chosen)), packed_linear(x, prepare(copied)))
    assert torch.equal(copied.dequantize(), stored.dequantize()[order][3:])


def test_shapes_types_and_bias() -> None:
    weight = random_weight("q8_0", 33, 64)
    packed = prepare(weight)
    bias = torch.randn(33)
    x = whole_numbers(6, 64).view(2, 3, 64)
    assert packed_linear(x, packed, bias).shape == (2, 3, 33)
    torch.testing.assert_close(packed_linear(x, packed, bias) - bias, packed_linear(x, packed))
    assert packed_linear(x[:, :0], packed).shape == (2, 0, 33)
    assert packed_linear(x.bfloat16(), packed).dtype == torch.bfloat16
    every_other = torch.stack((x, x), -1)[..., 0]
    assert not every_other.is_contiguous()
    assert torch.equal(packed_linear(every_other, packed), packed_linear(x, packed))


@pytest.mark.parametrize("name", ["q4_0", "q4_k", "q6_k", "q8_0"])
def test_odd_activations_stay_in_their_token(name: str) -> None:
    weight = random_weight(name, 24, 256)
    packed = prepare(weight)
    assert_odd_activations_stay_in_their_token(partial(packed_linear, weight=packed))
    large = packed_linear(torch.full((1, 256), 1e30), packed)
    assert large.isfinite().all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_scale_that_is_no_number_is_refused(value: float) -> None:
    weight = random_weight("q4_k", 16, 512)
    broken = torch.tensor([value]).half().view(torch.uint8)
    weight.blocks.view(-1, 144)[5, :2] = broken
    with pytest.raises(CheckpointError, match=r"gguf\.q4_k.*scale is not a finite number"):
        prepare(weight)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rows", [1, 8, 21])
def test_panels_give_back_the_blocks_they_were_made_of(name: str, rows: int) -> None:
    weight = random_weight(name, rows, 768)
    if name == "q8_k":  # whose blocks end in sums of sixteen codes
        blocks = weight.blocks.view(-1, 292)
        sums = blocks[:, 4:260].view(torch.int8).view(-1, 16, 16).sum(-1).short()
        blocks[:, 260:] = sums.contiguous().view(torch.uint8)
    before, values = weight.blocks.clone(), weight.dequantize()
    prepare(weight)
    assert weight._stored is None  # nothing is in memory twice
    assert torch.equal(weight.blocks, before)
    assert torch.equal(weight.dequantize(), values)
    index = torch.tensor([rows - 1, 0, rows // 2, 0])
    assert torch.equal(weight.gather(index), values[index])
    part = weight.rows(rows // 3, rows)
    assert torch.equal(part.dequantize(), values[rows // 3 :])
    assert torch.equal(GgmlWeight.concat([weight, part]).blocks[:rows], before)
    assert weight.nbytes == before.nbytes


def test_rows_in_an_order_of_their_own_are_given_back_in_it() -> None:
    chosen = random_weight("q6_k", 20, 256).select(torch.arange(20).flip(0))
    before = chosen.blocks.clone()
    prepare(chosen)
    assert torch.equal(chosen.blocks, before)
    assert torch.equal(chosen.select(torch.arange(20).flip(0)).blocks, before.flip(0))


def test_views_of_a_stack_stay() -> None:
    stack = random_weight("q4_k", 3 * 8, 256)
    experts = GgmlWeight(stack.blocks, stack.type, (3, 8, 256))
    part = experts.expert(1)
    prepare(part)
    assert part._stored is not None


def test_one_weight_is_packed_once() -> None:
    weight = random_weight("q4_0", 16, 64)
    assert prepare(weight) is prepare(weight)


def resident(address: int) -> int:
    """Bytes of a mapping that are in this process's memory, by the kernel's own account."""
    with open("/proc/self/smaps", encoding="ascii") as lines:
        inside = False
        for line in lines:
            words = line.split()
            if "-" in words[0] and not words[0].endswith(":"):
                low, high = (int(part, 16) for part in words[0].split("-"))
                inside = low <= address < high
            elif inside and words[0] == "Rss:":
                return int(words[1]) * 1024
    return 0


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps"), reason="asks Linux about its memory")
def test_a_mapped_weight_is_not_in_memory_twice(tmp_path: Path) -> None:
    source = random_weight("q8_0", 4096, 1024)
    file = tmp_path / "blocks"
    file.write_bytes(source.blocks.numpy().tobytes())
    data = torch.from_file(str(file), shared=False, size=source.nbytes, dtype=torch.uint8)
    weight = GgmlWeight(data, source.type, source.shape, mapped=True)
    assert torch.equal(weight.dequantize(), source.dequantize())
    assert resident(data.data_ptr()) > 0.9 * weight.nbytes
    packed = prepare(weight)
    assert resident(data.data_ptr()) < 0.1 * weight.nbytes
    x = whole_numbers(2, 1024)
    assert torch.equal(packed_linear(x, packed), packed_linear(x, prepare(source)))
    assert torch.equal(weight.dequantize(), source.dequantize())  # read from the file again


def test_without_the_library_the_reference_is_bound_and_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(dispatch, "_choices", {})
    monkeypatch.delenv(dispatch.ENVIRONMENT, raising=False)
    bound = dispatch.bind("packed_linear", cpu, dtype=torch.float32, format="gguf.q4_k")
    assert bound is packed_linear
    monkeypatch.setattr(dispatch, "_choices", {})
    monkeypatch.setattr(packed_linear, "why_not", lambda: "the native library was not built")
    bound = dispatch.bind("packed_linear", cpu, dtype=torch.float32, format="gguf.q4_k")
    assert bound is reference.packed_linear
    refusals = [c.refusal for c in dispatch.candidates("packed_linear", cpu)]
    assert "the native library was not built" in refusals


@pytest.mark.parametrize("name", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("shape", [(1, 32), (17, 100), (40, 768)])
def test_plain_floats_are_read_where_they_lie(name: str, shape: tuple[int, int]) -> None:
    rows, cols = shape
    values = torch.randn(rows, cols, generator=torch.Generator().manual_seed(6))
    dtype = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[name]
    blocks = values.to(dtype).view(torch.uint8).view(-1)
    weight = GgmlWeight.from_name(blocks, name, shape)
    packed = prepare(weight)
    assert packed.data.data_ptr() == blocks.data_ptr()
    x = torch.randn(130, cols, generator=torch.Generator().manual_seed(7))
    want = exact(x.bfloat16().float() if rounds_to_brain(dtype) else x, weight)
    for tokens in (1, 2, 4, 5, 9, 33, 130):
        got = packed_linear(x[:tokens], packed)
        assert (got - want[:tokens]).abs().max() <= 1e-6 * cols**0.5 * want.abs().max()
    alone = torch.cat([packed_linear(row[None], packed) for row in x[:33]])
    assert torch.equal(packed_linear(x[:33], packed), alone)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_narrow_linear_keeps_its_weight(dtype: torch.dtype) -> None:
    assert multiplies_narrow(dtype, torch.float32, torch.device("cpu"))
    generator = torch.Generator().manual_seed(8)
    weight = torch.nn.Parameter(torch.randn(24, 64, generator=generator).to(dtype), False)
    bias = torch.nn.Parameter(torch.randn(24, generator=generator), False)
    module = NarrowLinear(weight, bias)
    x = torch.randn(3, 64, generator=generator).to(dtype).float()
    unbound = module(x)
    module.bind_kernels(torch.device("cpu"), torch.float32)
    assert module.operand.data.data_ptr() == weight.data_ptr()
    torch.testing.assert_close(module(x), unbound, rtol=1e-5, atol=1e-5)


def test_activations_are_not_rounded_where_they_must_not_be() -> None:
    generator = torch.Generator().manual_seed(9)
    weight = torch.nn.Parameter(torch.randn(24, 100, generator=generator).bfloat16(), False)
    x = torch.randn(130, 100, generator=generator)
    want = x.double() @ weight.double().T
    allowed, exact = NarrowLinear(weight, None), NarrowLinear(weight, None, exact=True)
    for module in (allowed, exact):
        module.bind_kernels(torch.device("cpu"), torch.float32)
    for tokens in (1, 5, 130):
        torch.testing.assert_close(exact(x[:tokens]).double(), want[:tokens], rtol=1e-5, atol=1e-5)
        far = (allowed(x[:tokens]) - want[:tokens]).abs().max()
        assert (far > 1e-3) == rounds_to_brain(torch.bfloat16)
