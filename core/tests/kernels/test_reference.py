"""The reference attention against its definition, token by token."""

import torch

from tramontane.kernels.parts import plans
from tramontane.kernels.reference import paged_attention
from tramontane_testkit import KernelContract
from tramontane_testkit.kernels import DECODE, AttentionShape, attention_case


class TestPagedAttention(KernelContract):
    op = "paged_attention"
    kernel = staticmethod(paged_attention)


def test_plan_is_made_once_a_step_and_forgotten_with_it() -> None:
    q, cache, batch, options = attention_case(
        AttentionShape(seqs=DECODE), torch.device("cpu"), torch.float32
    )
    paged_attention(q, cache, batch, **options)
    (plan,) = plans[batch].values()
    paged_attention(q, cache, batch, **options)
    assert list(plans[batch].values()) == [plan]
    before = len(plans)
    del batch
    assert len(plans) == before - 1


def test_neighbours_change_nothing_beyond_rounding() -> None:
    shape = AttentionShape(seqs=DECODE)
    q, cache, batch, options = attention_case(shape, torch.device("cpu"), torch.float32)
    together = paged_attention(q, cache, batch, **options)
    for row in range(len(DECODE)):
        alone = type(batch)(
            token_ids=batch.token_ids[row : row + 1],
            positions=batch.positions[row : row + 1],
            query_starts=torch.tensor([0, 1], dtype=torch.int32),
            context_lens=batch.context_lens[row : row + 1],
            slots=batch.slots[row : row + 1],
            block_tables=batch.block_tables[row : row + 1],
            logit_rows=torch.zeros(1, dtype=torch.int64),
            query_lens=[1],
            kv_lens=batch.kv_lens[row : row + 1],
        )
        out = paged_attention(q[row : row + 1], cache, alone, **options)
        torch.testing.assert_close(out, together[row : row + 1], rtol=1e-5, atol=1e-5)
