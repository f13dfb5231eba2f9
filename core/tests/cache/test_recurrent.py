"""`RecurrentState` and its storage."""

from __future__ import annotations

import pytest
import torch

from tramontane.cache import RecurrentState


def allocate(spec, num_seqs):
    return spec.allocate(
        num_blocks=7,
        block_size=4,
        num_seqs=num_seqs,
        dtype=torch.bfloat16,
        device=torch.device("cpu"),
    )


def test_bytes_are_what_is_allocated():
    spec = RecurrentState((3, 10), (2, 4, 8))
    assert spec.bytes_per_token(torch.bfloat16) == 0
    assert allocate(spec, 5).nbytes == 5 * spec.bytes_per_seq(torch.bfloat16)


@pytest.mark.parametrize("singly", [True, False], ids=["as on a CPU", "as on a GPU"])
def test_states_go_from_slot_to_slot_and_begin_at_zero(singly):
    cache = allocate(RecurrentState((3, 10), (2, 4, 8)), 3)
    cache._singly = singly
    cache.conv.normal_()
    cache.ssm.normal_()
    conv_was, ssm_was = cache.conv.clone(), cache.ssm.clone()
    slots, new = torch.tensor([[4, 5], [1, 0], [2, 3]]), {1}

    conv = cache.conv_before(slots, new)
    cache.set_conv(slots, conv + 1)
    for _, before, after in cache.ssm_parts(slots, new):
        torch.add(before, 1, out=after)

    for was, now in ((conv_was, cache.conv), (ssm_was, cache.ssm)):
        assert torch.equal(now[[4, 1, 2]], was[[4, 1, 2]]), "what was read stays"
        assert torch.equal(now[5], was[4] + 1)
        assert torch.equal(now[3], was[2] + 1)
        assert torch.equal(now[0], torch.ones_like(now[0]))


def test_sizes_are_checked():
    with pytest.raises(ValueError, match="0"):
        RecurrentState((0, 10), (2, 4, 8))
