"""Native attention against the definition, and what the shared contract does not cover."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch

from tramontane_kernels_cpu.attention import paged_attention
from tramontane_kernels_cpu.library import native, why_not
from tramontane_testkit.kernels import (
    AttentionShape,
    KernelContract,
    attention_case,
    naive_attention,
)

pytestmark = pytest.mark.skipif(native() is None, reason=str(why_not()))


class TestContract(KernelContract):
    op = "paged_attention"
    kernel = staticmethod(paged_attention)
    dtypes: ClassVar = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}


@pytest.mark.parametrize("head_dim", [64, 72, 96, 128, 256])
@pytest.mark.parametrize("heads", [(8, 2), (12, 4), (7, 1)])
def test_head_sizes(head_dim: int, heads: tuple[int, int]) -> None:
    shape = AttentionShape(
        seqs=((3, 70), (1, 33), (1, 1), (40, 40)),
        num_heads=heads[0],
        num_kv_heads=heads[1],
        head_dim=head_dim,
        v_head_dim=head_dim,
        block_size=32,
    )
    q, cache, batch, options = attention_case(shape, torch.device("cpu"), torch.float32)
    options["scale"] = head_dim**-0.5
    torch.testing.assert_close(
        paged_attention(q, cache, batch, **options),
        naive_attention(q, cache, batch, **options),
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("window", [None, 900])
def test_a_long_context_is_split(sinks: bool, window: int | None) -> None:
    shape = AttentionShape(
        seqs=((1, 1500),), num_heads=2, num_kv_heads=1, block_size=32, sinks=sinks, window=window
    )
    q, cache, batch, options = attention_case(shape, torch.device("cpu"), torch.float32)
    torch.testing.assert_close(
        paged_attention(q, cache, batch, **options),
        naive_attention(q, cache, batch, **options),
        rtol=1e-5,
        atol=1e-5,
    )


def test_large_scores_do_not_overflow() -> None:
    shape = AttentionShape(seqs=((2, 40), (1, 9)))
    q, cache, batch, options = attention_case(shape, torch.device("cpu"), torch.float32)
    q *= 1e4
    torch.testing.assert_close(
        paged_attention(q, cache, batch, **options),
        naive_attention(q, cache, batch, **options),
        rtol=1e-4,
        atol=1e-4,
    )


def test_a_sequence_with_nan_leaves_its_neighbours_alone() -> None:
    shape = AttentionShape(seqs=((1, 20), (4, 30)))
    q, cache, batch, options = attention_case(shape, torch.device("cpu"), torch.float32)
    clean = paged_attention(q, cache, batch, **options)
    q[0, 0, 0] = torch.nan
    got = paged_attention(q, cache, batch, **options)
    assert got[0, 0].isnan().all()
    assert torch.equal(got[0, 1:], clean[0, 1:])
    assert torch.equal(got[1:], clean[1:])
