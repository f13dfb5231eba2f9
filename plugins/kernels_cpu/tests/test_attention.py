"""Native attention against the definition, and what the shared contract does not cover."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch

from tramontane.kernels import reference
from tramontane_kernels_cpu.attention import KV_DTYPES, paged_attention
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


def both(shape: AttentionShape, cache_dtype: torch.dtype = torch.float32) -> None:
    q, cache, batch, options = attention_case(
        shape, torch.device("cpu"), torch.float32, cache_dtype
    )
    options["scale"] = shape.head_dim**-0.5
    torch.testing.assert_close(
        paged_attention(q, cache, batch, **options),
        naive_attention(q, cache, batch, **options),
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize("head_dim", [64, 72, 80, 96, 128, 256])
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
    both(shape)


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
def test_types_of_the_cache(head_dim: int) -> None:
    """Against the reference, which is tested against the definition."""
    shape = AttentionShape(
        seqs=((3, 70), (1, 33), (1, 1), (40, 40)),
        num_heads=10,
        num_kv_heads=2,
        head_dim=head_dim,
        v_head_dim=head_dim,
        block_size=8,
    )
    for dtype in KV_DTYPES:
        q, cache, batch, options = attention_case(shape, torch.device("cpu"), torch.float32, dtype)
        options["scale"] = head_dim**-0.5
        torch.testing.assert_close(
            paged_attention(q, cache, batch, **options),
            reference.paged_attention(q, cache, batch, **options),
            rtol=1e-5,
            atol=1e-5,
        )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"window": 70},
        {"window": 3},
        {"softcap": 3.0, "window": 65},
        {"sinks": True, "num_heads": 18, "num_kv_heads": 1},
        {"head_dim": 20, "v_head_dim": 12, "block_size": 4},
    ],
    ids=str,
)
def test_many_queries_share_what_they_read(options: dict[str, Any]) -> None:
    """Runs of tokens of which some see nothing of what others do."""
    seqs = ((130, 130), (9, 200), (1, 150), (64, 64), (2, 65), (65, 129))
    for cache_dtype in (torch.float32, torch.float8_e4m3fn):
        both(AttentionShape(seqs=seqs, **{"block_size": 16, **options}), cache_dtype)


def test_a_token_that_is_not_finite_in_eight_bits_is_seen_to_be() -> None:
    shape = AttentionShape(seqs=((1, 20), (40, 50), (1, 30)), num_heads=8, num_kv_heads=2)
    for dtype in (torch.float8_e4m3fn, torch.int8):
        q, cache, batch, options = attention_case(shape, torch.device("cpu"), torch.float32, dtype)
        clean = paged_attention(q, cache, batch, **options)
        k, v = torch.randn(1, 2, 8), torch.randn(1, 2, 8)
        v[0, 1, 3] = torch.inf
        cache.write(k, v, batch.slots[1:2])  # the second sequence's first new token
        got = paged_attention(q, cache, batch, **options)
        assert got[1:41, 4:].isnan().all()
        assert got.isfinite()[1:41, :4].all()
        assert torch.equal(got[0], clean[0])
        assert torch.equal(got[41], clean[41])


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
