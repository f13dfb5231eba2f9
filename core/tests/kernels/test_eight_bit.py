"""Vectors in 8 bits: what they hold, and what reads them."""

from __future__ import annotations

import pytest
import torch

from tramontane.cache import PagedKV, PagedLatent
from tramontane.kernels.eight_bit import LARGEST, dequantize, quantize
from tramontane.kernels.latent import latent_attention
from tramontane.kernels.reference import paged_attention
from tramontane_testkit.kernels import (
    MIXED,
    AttentionShape,
    attention_case,
    naive_attention,
)
from tramontane_testkit.latent_kernels import LATENT_SHAPES, latent_case

F8 = torch.float8_e4m3fn
HALF_STEPS = {F8: 2.0**-4, torch.int8: 0.5 / 127}
"""Largest rounding error of a number, relative to itself (e4m3) or to its vector's largest."""


@pytest.mark.parametrize("dtype", list(LARGEST), ids=str)
def test_errors_are_bounded_whatever_the_size(dtype: torch.dtype) -> None:
    x = torch.randn(300, 64, generator=torch.Generator().manual_seed(0))
    x *= torch.logspace(-25, 37, 300)[:, None]
    codes, scales = quantize(x, dtype)
    assert codes.dtype is dtype
    assert scales.shape == (300,)
    found = dequantize(codes, scales, torch.float32)
    largest = x.abs().amax(-1, keepdim=True)
    unit = largest / 448 * 2**-6 if dtype is F8 else 0  # below, float8 has no more digits
    bound = HALF_STEPS[dtype] * (x.abs().clamp_min(unit) if dtype is F8 else largest)
    assert ((found - x).abs() <= bound * 1.001).all()
    at = x.abs().argmax(-1, keepdim=True)
    torch.testing.assert_close(found.gather(-1, at), x.gather(-1, at), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", list(LARGEST), ids=str)
def test_zeros_denormals_and_what_is_not_finite(dtype: torch.dtype) -> None:
    x = torch.zeros(5, 8)
    x[1] = 1e-40
    x[2, 3] = torch.inf
    x[3, 0] = torch.nan
    x[4] = 3e38
    codes, scales = quantize(x, dtype)
    found = dequantize(codes, scales, torch.float32)
    assert not found[:2].any()
    assert found[2:4].isnan().all()
    torch.testing.assert_close(found[4], x[4])


@pytest.mark.parametrize("dtype", list(LARGEST), ids=str)
def test_blocks_are_written_and_copied_with_their_scales(dtype: torch.dtype) -> None:
    cache = PagedKV(num_blocks=4, num_kv_heads=2, block_size=4, head_dim=8, dtype=dtype)
    k, v = torch.randn(3, 2, 8), 100 * torch.randn(3, 2, 8)
    cache.write(k, v, torch.tensor([1, 4, 6]))
    cache.copy_blocks(torch.tensor([0, 1]), torch.tensor([3, 2]))
    for stored, scales, new in ((cache.k, cache.k_scales, k), (cache.v, cache.v_scales, v)):
        read = dequantize(stored, scales, torch.float32)
        want = dequantize(*quantize(new, dtype), torch.float32)
        for blocks in ((0, 1), (3, 2)):
            got = torch.stack([read[blocks[0], :, 1], read[blocks[1], :, 0], read[blocks[1], :, 2]])
            assert torch.equal(got, want)
    assert cache.nbytes == 4 * 4 * 2 * (2 * 8 + 2 * 4)


@pytest.mark.parametrize("dtype", [*LARGEST, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("q_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_attention_reads_every_type(dtype: torch.dtype, q_dtype: torch.dtype) -> None:
    tolerance = 1e-5 if q_dtype is torch.float32 else 3e-2
    for shape in (AttentionShape(seqs=MIXED), AttentionShape(seqs=MIXED, window=5, sinks=True)):
        q, cache, batch, options = attention_case(shape, torch.device("cpu"), q_dtype, dtype)
        torch.testing.assert_close(
            paged_attention(q, cache, batch, **options),
            naive_attention(q, cache, batch, **options),
            rtol=tolerance,
            atol=tolerance,
        )


@pytest.mark.parametrize("dtype", list(LARGEST), ids=str)
@pytest.mark.parametrize("shape", ["mixed", "long chunk"])
def test_latents_and_their_keys_are_scaled_apart(dtype: torch.dtype, shape: str) -> None:
    q_nope, q_rope, kv_b, plain, batch = latent_case(
        LATENT_SHAPES[shape], torch.device("cpu"), torch.float32
    )
    rank, rope_dim = kv_b.shape[-1], q_rope.shape[-1]
    plain.latents[..., rank:] *= 100
    cache = PagedLatent(
        num_blocks=plain.num_blocks,
        block_size=plain.block_size,
        kv_lora_rank=rank,
        rope_dim=rope_dim,
        dtype=dtype,
    )
    tokens = plain.latents.flatten(0, 1)
    cache.write(tokens[:, :rank], tokens[:, rank:], torch.arange(len(tokens)))
    for part in (plain.latents[..., :rank], plain.latents[..., rank:]):
        part.copy_(dequantize(*quantize(part, dtype), torch.float32))
    torch.testing.assert_close(
        latent_attention(q_nope, q_rope, kv_b, cache, batch, scale=0.01),
        latent_attention(q_nope, q_rope, kv_b, plain, batch, scale=0.01),
    )
    assert cache.nbytes == len(tokens) * (rank + rope_dim + 8)
