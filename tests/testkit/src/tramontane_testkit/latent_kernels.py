"""The contract of a kernel of ``latent_attention``: what expanded keys and values would give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from attrs import frozen
from torch import Tensor

from tramontane.cache import PagedKV, PagedLatent
from tramontane.protocols import ForwardBatch
from tramontane_testkit.kernels import DECODE, MIXED, AttentionShape, attention_case
from tramontane_testkit.kernels import naive_attention as expanded_attention


@frozen(kw_only=True)
class LatentShape:
    """One case.

    Attributes:
        seqs: for each sequence, new tokens and tokens in all.
    """

    seqs: tuple[tuple[int, int], ...]
    num_heads: int = 3
    kv_lora_rank: int = 16
    nope_dim: int = 6
    rope_dim: int = 4
    v_head_dim: int = 8
    block_size: int = 4


LATENT_SHAPES: dict[str, LatentShape] = {
    "one decode step": LatentShape(seqs=((1, 13),)),
    "decode": LatentShape(seqs=DECODE),
    "mixed": LatentShape(seqs=MIXED),
    "whole prompt": LatentShape(seqs=((40, 40),)),
    "long chunk": LatentShape(seqs=((40, 61),)),
    "long and short": LatentShape(seqs=((33, 33), (1, 9), (40, 61), (2, 2))),
    "values wider than keys": LatentShape(seqs=((40, 50), (1, 9)), v_head_dim=20),
    "latent narrower than a head": LatentShape(seqs=((40, 50), (1, 9)), kv_lora_rank=5),
    "large blocks": LatentShape(seqs=MIXED, block_size=32),
}


def latent_case(
    shape: LatentShape, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, PagedLatent, ForwardBatch]:
    """Random q_nope, q_rope, kv_b, cache and batch, laid out as in `attention_case`."""
    one_head = AttentionShape(
        seqs=shape.seqs,
        num_heads=shape.num_heads,
        num_kv_heads=1,
        head_dim=shape.kv_lora_rank + shape.rope_dim,
        block_size=shape.block_size,
    )
    _, stored, batch, _ = attention_case(one_head, device, dtype)
    cache = PagedLatent(
        num_blocks=stored.num_blocks,
        block_size=shape.block_size,
        kv_lora_rank=shape.kv_lora_rank,
        rope_dim=shape.rope_dim,
        dtype=dtype,
        device=device,
    )
    cache.latents.copy_(stored.k[:, 0])
    generator = torch.Generator().manual_seed(1)

    def made(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator).to(device, dtype)

    q_nope = made(batch.num_tokens, shape.num_heads, shape.nope_dim)
    q_rope = made(batch.num_tokens, shape.num_heads, shape.rope_dim)
    kv_b = made(shape.num_heads, shape.nope_dim + shape.v_head_dim, shape.kv_lora_rank) / 4
    return q_nope, q_rope, kv_b, cache, batch


def naive_latent_attention(
    q_nope: Tensor,
    q_rope: Tensor,
    kv_b: Tensor,
    cache: PagedLatent,
    batch: ForwardBatch,
    *,
    scale: float,
) -> Tensor:
    """The same through a cache of every head's own keys and values, in float64."""
    nope_dim, rank = q_nope.shape[-1], kv_b.shape[-1]
    latents = cache.latents.double()
    kv = torch.einsum("bsr,hdr->bhsd", latents[..., :rank], kv_b.double())
    k_rope = latents[:, None, :, rank:].expand(-1, kv.shape[1], -1, -1)
    expanded = PagedKV(
        num_blocks=cache.num_blocks,
        num_kv_heads=kv.shape[1],
        block_size=cache.block_size,
        head_dim=nope_dim + q_rope.shape[-1],
        v_head_dim=kv.shape[-1] - nope_dim,
        dtype=torch.float64,
    )
    expanded.k.copy_(torch.cat((kv[..., :nope_dim], k_rope), -1))
    expanded.v.copy_(kv[..., nope_dim:])
    q = torch.cat((q_nope, q_rope), -1)
    return expanded_attention(q, expanded, batch, scale=scale)


class LatentKernelContract:
    """Subclass, name it ``Test…`` and give the kernel.

    Attributes:
        kernel: a callable with the signature of the reference.
        device: where to run it.
        dtypes: activation types to test, with their tolerances.
    """

    kernel: ClassVar[Callable[..., Tensor]]
    device: ClassVar[str] = "cpu"
    dtypes: ClassVar[dict[torch.dtype, float]] = {torch.float32: 1e-5, torch.bfloat16: 4e-2}

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "shape" in metafunc.fixturenames:
            metafunc.parametrize("shape", list(LATENT_SHAPES.values()), ids=list(LATENT_SHAPES))
            metafunc.parametrize("dtype", list(self.dtypes), ids=str)

    def test_equals_attention_over_expanded_heads(
        self, shape: LatentShape, dtype: torch.dtype
    ) -> None:
        device = torch.device(self.device)
        if device.type == "cuda" and not torch.cuda.is_available():
            pytest.skip("no CUDA device")
        case: tuple[Any, ...] = latent_case(shape, device, dtype)
        actual = type(self).kernel(*case, scale=0.4)
        expected = naive_latent_attention(*case, scale=0.4).to(device)
        assert actual.dtype == dtype
        tolerance = self.dtypes[dtype]
        torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)
