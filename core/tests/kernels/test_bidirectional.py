"""The reference of attention that sees both ways, against its definition."""

import pytest
import torch

from tramontane.cache import TransientAttention
from tramontane.kernels.reference import OPERATORS
from tramontane.protocols import ForwardBatch

HEADS, KV_HEADS, SIZE = 6, 2, 8


def batch_of(lengths: list[int]) -> ForwardBatch:
    empty = torch.empty(0, dtype=torch.int64)
    return ForwardBatch(
        token_ids=torch.zeros(sum(lengths), dtype=torch.int64),
        positions=torch.cat([torch.arange(n) for n in lengths]),
        query_starts=torch.tensor([0, *lengths]).cumsum(0).int(),
        context_lens=torch.tensor(lengths).int(),
        slots=empty,
        block_tables=empty[:, None].int(),
        logit_rows=empty,
        query_lens=lengths,
        kv_lens=lengths,
    )


@pytest.mark.parametrize("window", [None, 1, 3, 8])
@pytest.mark.parametrize("lengths", [[1], [5, 5, 5], [2, 9, 9, 1, 4], [17]])
def test_every_token_sees_its_window_on_both_sides(lengths: list[int], window: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    total = sum(lengths)
    q = torch.randn(total, HEADS, SIZE, generator=generator)
    k = torch.randn(total, KV_HEADS, SIZE, generator=generator)
    v = torch.randn(total, KV_HEADS, SIZE + 3, generator=generator)
    cache = TransientAttention().allocate(
        num_blocks=0, block_size=1, num_seqs=0, dtype=q.dtype, device=q.device
    )
    batch = batch_of(lengths)
    cache.write(k, v, batch.slots)
    attend = OPERATORS["bidirectional_attention"]
    actual = attend(q, cache, batch, scale=0.3, window=window)
    start = 0
    for length in lengths:
        for i in range(length):
            near = [j for j in range(length) if window is None or abs(i - j) < window]
            rows = [start + j for j in near]
            for head in range(HEADS):
                shared = head // (HEADS // KV_HEADS)
                scores = (k[rows, shared] @ q[start + i, head]) * 0.3
                expected = scores.softmax(0) @ v[rows, shared]
                torch.testing.assert_close(actual[start + i, head], expected)
        start += length


def test_nothing_is_kept() -> None:
    spec = TransientAttention()
    assert spec.bytes_per_token(torch.float32) == spec.bytes_per_seq(torch.float32) == 0
