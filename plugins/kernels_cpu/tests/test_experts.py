"""Experts in one native call against the same experts one by one in torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tramontane.kernels import dispatch
from tramontane.nn import (
    BoundedGate,
    ExpertLinear,
    GatedExperts,
    MoE,
    NarrowExpertLinear,
    PackedExpertLinear,
    SoftmaxTopK,
    bind_kernels,
)
from tramontane_gguf.quantizer import GgmlQuantizer
from tramontane_kernels_cpu.library import native, why_not
from tramontane_kernels_cpu.weights import rounds_to_brain

pytestmark = pytest.mark.skipif(native() is None, reason=str(why_not()))

CPU = torch.device("cpu")
PLAIN = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
NUM_EXPERTS, TOP_K = 6, 2


@pytest.fixture(autouse=True)
def _plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(dispatch.ENVIRONMENT, raising=False)


def experts(
    kind: str, hidden: int = 256, inner: int = 512, act: Any = "silu", bias: bool = False
) -> Any:
    """Random experts whose stacks are of type ``kind``, bound."""
    generator = torch.Generator().manual_seed(0)
    module = GatedExperts(NUM_EXPERTS, hidden, inner, act, bias=bias)
    for name in ("gate_proj", "up_proj", "down_proj"):
        stack: Any = getattr(module, name)
        for parameter in stack.parameters():
            shape = parameter.shape
            scale = shape[-1] ** -0.5 if len(shape) == 3 else 0.3
            parameter.data = torch.randn(shape, generator=generator) * scale
            parameter.requires_grad_(False)
        if kind == "f32":
            continue
        if kind in PLAIN:
            weight = nn.Parameter(stack.weight.to(PLAIN[kind]), requires_grad=False)
            setattr(module, name, NarrowExpertLinear(weight, stack.bias))
        else:
            packed = GgmlQuantizer().quantize(stack.weight, kind)
            setattr(module, name, PackedExpertLinear(packed, stack.bias))
    bind_kernels(module, CPU, torch.float32)
    assert module._whole is not None
    return module


def inputs(num_tokens: int, hidden: int = 256, top_k: int = TOP_K) -> tuple[Any, Any, Any]:
    """Activations, weights, and experts of which the last never gets a token."""
    generator = torch.Generator().manual_seed(num_tokens)
    x = torch.randn(num_tokens, hidden, generator=generator)
    logits = torch.randn(num_tokens, NUM_EXPERTS, generator=generator)
    logits[:, -1] = -torch.inf
    return x, *SoftmaxTopK(top_k)(logits)


def one_by_one(module: Any, *arguments: Any) -> torch.Tensor:
    """What torch's road computes with the experts' own kernels."""
    whole, module._whole = module._whole, None
    done: torch.Tensor = module(*arguments)
    module._whole = whole
    return done


def check(module: Any, *arguments: Any, tolerance: float = 5e-3) -> None:
    got, want = module(*arguments), one_by_one(module, *arguments)
    assert (got - want).abs().max() <= tolerance * want.abs().max()


@pytest.mark.parametrize("kind", ["q4_k", "q8_0", "mxfp4", "q6_k", "f32", "bf16", "f16"])
def test_equal_to_experts_one_by_one(kind: str) -> None:
    module = experts(kind)
    for num_tokens in (1, 2, 3, 9, 16, 33, 130):
        check(module, *inputs(num_tokens))


def test_equal_to_the_reference() -> None:
    module = experts("q8_0")
    arguments = inputs(7)
    got = module(*arguments)
    for name in ("gate_proj", "up_proj", "down_proj"):
        stack = getattr(module, name)
        setattr(module, name, PackedExpertLinear(stack.packed))  # never bound
    module._whole = None
    want = module(*arguments)
    assert (got - want).norm() <= 0.03 * want.norm()


@pytest.mark.parametrize(
    ("kind", "hidden", "inner"),
    [("q8_0", 96, 160), ("q4_0", 32, 32), ("f32", 37, 51), ("bf16", 13, 5), ("q4_k", 256, 256)],
)
def test_sizes_that_fill_no_panel(kind: str, hidden: int, inner: int) -> None:
    module = experts(kind, hidden, inner)
    for num_tokens in (1, 11):
        check(module, *inputs(num_tokens, hidden))


@pytest.mark.parametrize("top_k", [1, 4])
@pytest.mark.parametrize("act", ["silu", "gelu_pytorch_tanh", "relu", BoundedGate(0.4, 1.702)])
def test_gates_and_biases(act: Any, top_k: int) -> None:
    module = experts("q8_0", act=act, bias=True)
    for num_tokens in (1, 5):
        check(module, *inputs(num_tokens, top_k=top_k))


@pytest.mark.parametrize("kind", ["q4_k", "mxfp4", "bf16"])
def test_a_token_does_not_depend_on_its_neighbours(kind: str) -> None:
    module = experts(kind)
    arguments = inputs(37)
    together = module(*arguments)
    alone = torch.cat([module(*(a[t : t + 1] for a in arguments)) for t in range(37)])
    assert torch.equal(together, alone)
    some = [3, 4, 30, 36]
    assert torch.equal(module(*(a[some] for a in arguments)), together[some])


@pytest.mark.parametrize("kind", ["q4_k", "f32"])
def test_all_tokens_to_one_expert(kind: str) -> None:
    x, weights, chosen = inputs(19, top_k=1)
    check(experts(kind), x, weights, torch.full_like(chosen, 4))


def test_nothing_to_do_and_odd_values() -> None:
    module = experts("q8_0")
    x, weights, chosen = inputs(6)
    assert module(x[:0], weights[:0], chosen[:0]).shape == (0, 256)
    clean = module(x, weights, chosen)
    x[2, 3] = torch.nan
    got = module(x, weights, chosen)
    assert got[2].isnan().all()
    assert torch.equal(got[[0, 1, 3, 4, 5]], clean[[0, 1, 3, 4, 5]])
    with pytest.raises(RuntimeError, match="shapes disagree"):
        module(x, weights, chosen + NUM_EXPERTS)


def test_many_tokens_of_plain_weights_go_through_torch() -> None:
    module = experts("f16")
    assert module._whole(*inputs(200)) is not None
    assert module._whole(*inputs(300)) is None
    assert module(*inputs(300)).isfinite().all()
    # Torch does not round.
    rounded = experts("bf16")._whole(*inputs(300)) is not None
    assert rounded == rounds_to_brain(torch.bfloat16)


def test_what_is_not_covered_is_left_alone() -> None:
    module = GatedExperts(2, 8, 8, "quick_gelu")
    bind_kernels(module, CPU, torch.float32)
    assert module._whole is None
    mixed = experts("q4_k")
    mixed.up_proj = experts("q8_0").up_proj  # rounds activations in another way than the gate's
    bind_kernels(mixed, CPU, torch.float32)
    assert mixed._whole is None
    assert mixed(*inputs(3)).isfinite().all()


def test_who_listens_to_a_stack_hears_it() -> None:
    module = experts("q8_0")
    heard: list[int] = []
    hook = module.down_proj.register_forward_pre_hook(lambda _, x: heard.append(x[1]))
    x, weights, chosen = inputs(5)
    module(x, weights, chosen)
    assert heard == sorted(set(chosen.flatten().tolist()))
    hook.remove()
    module(x, weights, chosen)
    assert len(heard) == len(set(chosen.flatten().tolist()))


def test_a_mixture_uses_its_experts_whole() -> None:
    module = MoE(256, experts("q4_k"), NUM_EXPERTS, SoftmaxTopK(TOP_K))
    module.gate.weight.data = torch.randn(NUM_EXPERTS, 256) * 0.1  # type: ignore[operator]
    x = torch.randn(4, 256)
    with torch.inference_mode():
        got = module(x)
        module.experts._whole = None
        want = module(x)
    assert (got - want).abs().max() <= 5e-3 * want.abs().max()


def test_narrow_experts_without_a_kernel() -> None:
    weight = torch.randn(3, 5, 7).bfloat16()
    narrow = NarrowExpertLinear(nn.Parameter(weight, requires_grad=False), None)
    wide = ExpertLinear(3, 7, 5)
    wide.weight.data = weight.float()
    x = torch.randn(2, 7)
    torch.testing.assert_close(narrow(x, 1), wide(x, 1))
