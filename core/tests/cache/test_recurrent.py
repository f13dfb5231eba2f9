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


def test_what_is_stored_is_loaded_and_new_sequences_begin_at_zero():
    cache = allocate(RecurrentState((3, 10), (2, 4, 8)), 3)
    conv, ssm = torch.randn(2, 3, 10), torch.randn(2, 2, 4, 8)
    cache.store(torch.tensor([4, 1]), conv, ssm)
    loaded_conv, loaded_ssm = cache.load(torch.tensor([1, 4, 4]), [2])
    assert torch.equal(loaded_conv[:2], conv.flip(0))
    assert torch.equal(loaded_ssm[:2], ssm.flip(0))
    assert not loaded_conv[2].any()
    assert not loaded_ssm[2].any()
    loaded_ssm.fill_(9.0)
    assert torch.equal(cache.ssm[1], ssm[1]), "a loaded state is a copy"


def test_sizes_are_checked():
    with pytest.raises(ValueError, match="0"):
        RecurrentState((0, 10), (2, 4, 8))
