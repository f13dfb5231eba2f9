"""Norm, activations, experts and packed modules against their definitions."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from tramontane.errors import ConfigError
from tramontane.kernels import reference
from tramontane.nn import (
    ACTIVATIONS,
    ExpertLinear,
    GatedExperts,
    GatedMLP,
    MoE,
    PackedEmbedding,
    PackedExpertLinear,
    PackedLinear,
    RMSNorm,
    SoftmaxTopK,
    activation,
    bind_kernels,
)
from tramontane.protocols import PackedWeight


class Halves(PackedWeight):
    """A made-up format: float16, so that rounding shows where plain weights slip in."""

    format = "test.halves"

    def __init__(self, data: Tensor) -> None:
        self.data = data.half()
        self.shape = tuple(data.shape)

    @property
    def nbytes(self) -> int:
        return self.data.nbytes

    @property
    def device(self) -> torch.device:
        return self.data.device

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.data.to(dtype)

    def rows(self, start: int, stop: int) -> Halves:
        return Halves(self.data[start:stop])

    def gather(self, index: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.data[index].to(dtype)

    def to(self, device: torch.device) -> Halves:
        return Halves(self.data.to(device))

    @classmethod
    def concat(cls, parts: Sequence[Halves]) -> Halves:
        return cls(torch.cat([part.data for part in parts]))


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2), (torch.float16, 1e-3)]
)
def test_rms_norm_equals_transformers(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    ours, theirs = RMSNorm(64, 1e-3), LlamaRMSNorm(64, 1e-3)
    weight = torch.rand(64)
    for norm in (ours, theirs):
        norm.weight.data.copy_(weight)
        norm.to(dtype)
    x = (torch.randn(5, 64) * 300).to(dtype)
    torch.testing.assert_close(ours(x), theirs(x), rtol=tolerance, atol=tolerance)


def test_rms_norm_does_not_overflow_in_half_precision() -> None:
    norm = RMSNorm(8).half()
    out = norm(torch.full((1, 8), 30000.0, dtype=torch.float16))
    torch.testing.assert_close(out, torch.ones(1, 8, dtype=torch.float16))


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activation_equals_transformers(name: str) -> None:
    x = torch.linspace(-6, 6, 101)
    torch.testing.assert_close(activation(name)(x), ACT2FN[name](x), rtol=1e-5, atol=1e-6)


def test_unknown_activation_lists_the_known() -> None:
    with pytest.raises(ConfigError, match="'sine' is unknown; known are silu"):
        activation("sine")


def make_moe(num_experts: int, top_k: int, renormalize: bool) -> MoE:
    torch.manual_seed(0)
    experts = GatedExperts(num_experts, 16, 24)
    moe = MoE(16, experts, num_experts, SoftmaxTopK(top_k, renormalize))
    for parameter in moe.parameters():
        nn.init.normal_(parameter, std=0.3)
    return moe


@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize("num_tokens", [1, 2, 17])
@pytest.mark.parametrize(("num_experts", "top_k"), [(4, 1), (8, 2), (3, 3)])
def test_experts_by_group_equal_token_by_token(
    num_experts: int, top_k: int, num_tokens: int, renormalize: bool
) -> None:
    moe = make_moe(num_experts, top_k, renormalize)
    x = torch.randn(num_tokens, 16)
    gate, up, down = (
        getattr(moe.experts, name).weight for name in ("gate_proj", "up_proj", "down_proj")
    )
    expected = torch.zeros_like(x)
    for t in range(num_tokens):
        probabilities = (moe.gate.weight @ x[t]).softmax(0)
        weights, chosen = probabilities.topk(top_k)
        if renormalize:
            weights = weights / weights.sum()
        for weight, e in zip(weights, chosen, strict=True):
            expected[t] += weight * (down[e] @ (F.silu(gate[e] @ x[t]) * (up[e] @ x[t])))
    with torch.inference_mode():
        torch.testing.assert_close(moe(x), expected.detach(), rtol=1e-5, atol=1e-5)


def test_packed_experts_equal_plain_ones() -> None:
    moe = make_moe(5, 2, True)
    for projection in ("gate_proj", "up_proj", "down_proj"):
        plain = getattr(moe.experts, projection)
        plain.weight.data = plain.weight.data.half().float()
    x = torch.randn(9, 16)
    with torch.inference_mode():
        expected = moe(x)
        for projection in ("gate_proj", "up_proj", "down_proj"):
            packed = Halves(getattr(moe.experts, projection).weight.data)
            setattr(moe.experts, projection, PackedExpertLinear(packed))
        bind_kernels(moe, torch.device("cpu"), torch.float32)
        torch.testing.assert_close(moe(x), expected)


def test_expert_biases() -> None:
    plain = ExpertLinear(3, 4, 6, bias=True)
    assert plain.bias is not None
    nn.init.normal_(plain.weight)
    nn.init.normal_(plain.bias)
    x = torch.randn(2, 4)
    packed = PackedExpertLinear(Halves(plain.weight.data), plain.bias.data)
    for e in range(3):
        expected = x @ plain.weight[e].T + plain.bias[e]
        torch.testing.assert_close(plain(x, e), expected)
        torch.testing.assert_close(packed(x, e), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("dense_numbers", [1 << 24, 100, 1])
def test_packed_linear_in_slices(dense_numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "_DENSE_NUMBERS", dense_numbers)
    weight, bias = torch.randn(37, 8).half().float(), torch.randn(37)
    x = torch.randn(2, 3, 8)
    for b in (None, bias):
        module = PackedLinear(Halves(weight), b)
        torch.testing.assert_close(module(x), F.linear(x, weight, b))
    assert (module.in_features, module.out_features) == (8, 37)


def test_packed_embedding() -> None:
    weight = torch.randn(10, 4).half()
    module = PackedEmbedding(Halves(weight), torch.float32)
    ids = torch.tensor([[3, 9], [0, 3]])
    torch.testing.assert_close(module(ids), F.embedding(ids, weight.float()))


def test_operators_build_on_the_meta_device() -> None:
    with torch.device("meta"):
        modules = [RMSNorm(4), GatedMLP(4, 8), make_moe(2, 1, True)]
    assert all(p.is_meta for module in modules for p in module.parameters())
