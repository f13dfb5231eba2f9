"""Modules computed in one native call against the same modules computed part by part."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tramontane.cache import PagedKV
from tramontane.kernels import dispatch
from tramontane.kernels.eight_bit import dequantize
from tramontane.nn import (
    AdjacentRope,
    BoundedGate,
    Decoder,
    DecoderConfig,
    ExpertLinear,
    GatedExperts,
    GatedMLP,
    MoE,
    PackedExpertLinear,
    PackedLinear,
    PreNormLayer,
    RMSNorm,
    Rope,
    RopeParameters,
    Rotary,
    SelfAttention,
    SoftmaxTopK,
    bind_kernels,
)
from tramontane.protocols import ForwardBatch
from tramontane_gguf.blocks import GgmlWeight
from tramontane_gguf.quantizer import GgmlQuantizer
from tramontane_kernels_cpu.attention import KV_DTYPES
from tramontane_kernels_cpu.block import decoder_layers
from tramontane_kernels_cpu.library import native, why_not

pytestmark = pytest.mark.skipif(native() is None, reason=str(why_not()))

CPU = torch.device("cpu")
HIDDEN, HEADS, KV_HEADS, HEAD_DIM = 256, 8, 2, 32
BLOCK_SIZE = 16


@pytest.fixture(autouse=True)
def _plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(dispatch.ENVIRONMENT, raising=False)


def packed(module: nn.Module, type_names: dict[str, str], seed: int = 0) -> nn.Module:
    """Random weights; linears packed, by the last part of their name or ``""`` for the rest, unless
    to no type."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        scale = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.2
        values = torch.randn(parameter.shape, generator=generator) * scale
        parameter.data = values + (1.0 if "norm" in name else 0.0)
        parameter.requires_grad_(False)
    quantizer = GgmlQuantizer()
    for name, child in list(module.named_modules()):
        kind = type_names.get(name.rpartition(".")[2], type_names[""])
        if isinstance(child, nn.Linear | ExpertLinear) and kind:
            weight = quantizer.quantize(child.weight, kind)
            assert isinstance(weight, GgmlWeight)
            twin = PackedLinear if isinstance(child, nn.Linear) else PackedExpertLinear
            module.set_submodule(name, twin(weight, child.bias))
    bind_kernels(module, CPU, torch.float32)
    return module


def attention(**options: Any) -> SelfAttention:
    return SelfAttention(HIDDEN, HEADS, KV_HEADS, HEAD_DIM, **options)


def steps() -> Iterator[ForwardBatch]:
    """Three sequences: prompts of which one comes in two chunks, then decoding."""
    lengths = [0, 0, 0]
    tables = torch.arange(30, dtype=torch.int32).view(3, 10).flip(1).contiguous()
    for query_lens in ([20, 7, 1], [9, 1, 1], [1, 1, 1], [1, 1, 1]):
        starts = [0]
        positions: list[int] = []
        slots: list[int] = []
        for i, n in enumerate(query_lens):
            for p in range(lengths[i], lengths[i] + n):
                positions.append(p)
                slots.append(int(tables[i, p // BLOCK_SIZE]) * BLOCK_SIZE + p % BLOCK_SIZE)
            lengths[i] += n
            starts.append(starts[-1] + n)
        yield ForwardBatch(
            token_ids=torch.zeros(len(positions), dtype=torch.int64),
            positions=torch.tensor(positions),
            query_starts=torch.tensor(starts, dtype=torch.int32),
            context_lens=torch.tensor(lengths, dtype=torch.int32),
            slots=torch.tensor(slots),
            block_tables=tables,
            logit_rows=torch.arange(3),
            query_lens=query_lens,
            kv_lens=list(lengths),
        )


def run(module: Any, rotary: Rotary | None, kv_dtype: torch.dtype) -> list[Tensor]:
    """What a module with a cache computes over `steps`."""
    cache = PagedKV(
        num_blocks=30,
        num_kv_heads=KV_HEADS,
        block_size=BLOCK_SIZE,
        head_dim=HEAD_DIM,
        dtype=kv_dtype,
    )
    generator = torch.Generator().manual_seed(5)
    out = []
    for batch in steps():
        x = torch.randn(batch.num_tokens, HIDDEN, generator=generator)
        rope = None if rotary is None else rotary(batch, torch.float32)
        out.append(module(x, rope, batch, cache))
    return [*out, *(dequantize(*part, torch.float32) for part in stored(cache))]


def stored(cache: PagedKV) -> list[tuple[Tensor, Tensor | None]]:
    return [(cache.k, cache.k_scales), (cache.v, cache.v_scales)]


def rotary(layout: type[Rope], part: float = 1.0) -> Rotary:
    parameters = RopeParameters(
        max_position_embeddings=512,
        original_max_position_embeddings=512,
        partial_rotary_factor=part,
    )
    return Rotary(parameters, HEAD_DIM, layout)


def both_ways(module: Any, *arguments: Any, turned: float = 0.0, **options: Any) -> None:
    """One native call gives what the parts give one by one.

    `turned` is the share of tokens in which an activation may lie so near between two codes that
    parts round it to the other one, which moves a token by a step of activations times a weight.
    """
    assert module._whole is not None
    whole = run(module, *arguments, **options)
    for part in module.modules():
        if hasattr(part, "_whole"):
            part._whole = None
    parts = run(module, *arguments, **options)
    near = []
    for got, want in zip(whole, parts, strict=True):
        near.append(torch.isclose(got, want, rtol=2e-3, atol=2e-3).all(-1).flatten())
        torch.testing.assert_close(got, want, rtol=2e-3, atol=0.03 if turned else 2e-3)
    assert torch.cat(near).float().mean() >= 1 - turned


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": True},
        {"window": 10, "scale": 0.3},
        {"softcap": 5.0},
        {"sinks": True},
        {"q_norm": RMSNorm(HEAD_DIM), "k_norm": RMSNorm(HEAD_DIM, 1e-5)},
    ],
    ids=lambda options: "+".join(options) or "plain",
)
def test_attention(options: dict[str, Any]) -> None:
    module = packed(attention(**options), {"": "q8_0"})
    both_ways(module, rotary(Rope), torch.float32)


@pytest.mark.parametrize("kv_dtype", list(KV_DTYPES))
@pytest.mark.parametrize("layout", [Rope, AdjacentRope, None])
def test_rotation_and_cache(layout: type[Rope] | None, kv_dtype: torch.dtype) -> None:
    module = packed(attention(), {"": "q8_0"})
    both_ways(module, None if layout is None else rotary(layout, 0.5), kv_dtype)


@pytest.mark.parametrize("kv_dtype", [torch.float8_e4m3fn, torch.int8])
def test_an_eight_bit_cache_is_written_as_the_reference_does(kv_dtype: torch.dtype) -> None:
    """Bit for bit, where what is written is: without rotation the rows are those of k_proj."""
    module: Any = packed(attention(), {"": "q8_0"})
    for size in (1.0, 1e-30, 1e30):
        cache, other = (
            PagedKV(
                num_blocks=30,
                num_kv_heads=KV_HEADS,
                block_size=BLOCK_SIZE,
                head_dim=HEAD_DIM,
                dtype=kv_dtype,
            )
            for _ in range(2)
        )
        batch = next(steps())
        x = size * torch.randn(batch.num_tokens, HIDDEN, generator=torch.Generator().manual_seed(2))
        x[3], x[4, 7] = 0.0, torch.nan
        module(x, None, batch, cache)
        k, v = (proj(x).unflatten(-1, (-1, HEAD_DIM)) for proj in (module.k_proj, module.v_proj))
        other.write(k, v, batch.slots)
        for (codes, scales), (want, want_scales) in zip(stored(cache), stored(other), strict=True):
            torch.testing.assert_close(scales, want_scales, rtol=0, atol=0, equal_nan=True)
            assert torch.equal(codes.view(torch.uint8), want.view(torch.uint8))


@pytest.mark.parametrize("act", ["silu", "gelu", "gelu_pytorch_tanh", "relu"])
@pytest.mark.parametrize("kind", ["q8_0", "q4_k"])
def test_gated_mlp(act: str, kind: str) -> None:
    module: Any = packed(GatedMLP(HIDDEN, 512, act, bias=True), {"": kind})
    assert module._whole is not None
    x = torch.randn(9, HIDDEN, generator=torch.Generator().manual_seed(1)) * 4
    whole = module(x)
    alone = torch.cat([module(row[None]) for row in x])
    assert torch.equal(whole, alone)
    module._whole = None
    torch.testing.assert_close(whole, module(x), rtol=2e-3, atol=4e-3)


def layer(types: dict[str, str]) -> Any:
    parts = (attention(), GatedMLP(HIDDEN, 768), RMSNorm(HIDDEN), RMSNorm(HIDDEN, 1e-5))
    return packed(PreNormLayer(*parts), types)


@pytest.mark.parametrize("types", [{"": "q8_0"}, {"": "q4_k", "v_proj": "q6_k"}])
def test_layer(types: dict[str, str]) -> None:
    both_ways(layer(types), rotary(Rope), torch.float32)


@pytest.mark.parametrize("kind", ["q8_0", "q4_k"])
@pytest.mark.parametrize(
    ("route", "act"),
    [(SoftmaxTopK(2), "silu"), (SoftmaxTopK(3, renormalize=False), BoundedGate(0.5, 1.7))],
)
def test_layer_of_experts(kind: str, route: SoftmaxTopK, act: Any) -> None:
    experts = GatedExperts(5, HIDDEN, 512, act, bias=True)
    mlp = MoE(HIDDEN, experts, 5, route, gate_bias=True)
    parts = (attention(), mlp, RMSNorm(HIDDEN), RMSNorm(HIDDEN, 1e-5))
    module = packed(PreNormLayer(*parts), {"": kind, "gate": ""})
    both_ways(module, rotary(Rope), torch.float32, turned=0.05)


def test_a_router_of_another_kind_is_left_alone() -> None:
    experts = GatedExperts(3, HIDDEN, 256)
    norms = RMSNorm(HIDDEN), RMSNorm(HIDDEN)
    for route, gate in ((lambda scores: SoftmaxTopK(1)(scores), ""), (SoftmaxTopK(1), "q8_0")):
        module: Any = PreNormLayer(attention(), MoE(HIDDEN, experts, 3, route), *norms)
        packed(module, {"": "q8_0", "gate": gate})
        assert module._whole is None
        assert module.self_attn._whole is not None
        assert module.mlp.experts._whole is not None


@pytest.mark.parametrize("count", [1, 2, 5])
def test_layers_of_a_decoder(count: int) -> None:
    """One call for all of them gives what a call for each does, bit for bit."""
    moe = MoE(HIDDEN, GatedExperts(5, HIDDEN, 256), 5, SoftmaxTopK(2))
    layers = [
        PreNormLayer(
            attention(window=10 if i == 3 else None),
            moe if i == 1 else GatedMLP(HIDDEN, 256 * (i + 1)),
            RMSNorm(HIDDEN),
            RMSNorm(HIDDEN),
        )
        for i in range(count)
    ]
    config = DecoderConfig(
        vocab_size=64,
        hidden_size=HIDDEN,
        intermediate_size=256,
        num_hidden_layers=count,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        max_position_embeddings=512,
        rope_parameters=rotary(Rope).parameters_of_rope,
    )
    decoder: Any = packed(Decoder(config, layers, RMSNorm(HIDDEN)), {"": "q8_0", "gate": ""})

    def computed() -> list[Tensor]:
        size = {"num_kv_heads": KV_HEADS, "block_size": BLOCK_SIZE, "head_dim": HEAD_DIM}
        caches = [PagedKV(num_blocks=30, dtype=torch.float32, **size) for _ in layers]
        out = [decoder(batch, caches) for batch in steps()]
        return [*out, *(part for cache in caches for part in (cache.k, cache.v))]

    whole = computed()
    heard: list[int] = []
    hook = layers[-1].register_forward_hook(lambda *_: heard.append(1))
    each = computed()
    hook.remove()
    assert decoder._whole is not None
    assert heard == [1] * 4
    for got, want in zip(whole, each, strict=True):
        assert torch.equal(got, want)


def test_layers_of_which_one_is_not_covered() -> None:
    layers = [layer({"": "q8_0"}), layer({"": "q4_k", "v_proj": "q8_0"})]
    holder = nn.Module()
    holder.layers = nn.ModuleList(layers)
    assert decoder_layers(holder, torch.float32) is None
    holder.layers = nn.ModuleList(layers[:1])
    assert decoder_layers(holder, torch.float32) is not None


@pytest.mark.parametrize("size", [1, 7, 64, 300])
def test_norm(size: int) -> None:
    module: Any = packed(RMSNorm(size, 1e-5), {"": ""})
    x = torch.randn(2, 5, size, generator=torch.Generator().manual_seed(6)) * 3
    whole = module(x)
    assert module._whole is not None
    assert torch.equal(whole[1, 2], module(x[1, 2]))
    assert module(x[:, :0]).shape == (2, 0, size)
    every_other = torch.stack((x, x), -1)[..., 0]
    assert torch.equal(module(every_other), whole)
    module._whole = None
    torch.testing.assert_close(whole, module(x), rtol=1e-5, atol=1e-6)


def test_what_is_not_covered_is_left_alone() -> None:
    mixed = layer({"": "q4_k", "v_proj": "q8_0"})  # rounds activations in two ways
    assert mixed._whole is None
    assert mixed.mlp._whole is not None


def test_who_listens_to_a_part_hears_it() -> None:
    module = layer({"": "q8_0"})
    heard: list[int] = []
    hook = module.mlp.down_proj.register_forward_pre_hook(lambda _, x: heard.append(len(x[0])))
    run(module, rotary(Rope), torch.float32)
    assert heard == [28, 11, 3, 3]
    hook.remove()
    run(module, rotary(Rope), torch.float32)
    assert len(heard) == 4


def test_replacing_a_part_takes_effect_when_bound_again() -> None:
    module = layer({"": "q8_0"})
    module.mlp.down_proj = nn.Linear(768, HIDDEN)
    bind_kernels(module, CPU, torch.float32)
    assert module._whole is None
    run(module, rotary(Rope), torch.float32)
