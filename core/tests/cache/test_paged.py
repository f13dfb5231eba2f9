from __future__ import annotations

import os

import pytest
import torch

from tramontane.cache import FullAttention, PagedKV, SlidingAttention
from tramontane.protocols.cache import CacheSpec, LayerCache


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_written_tokens_lie_in_their_slots(dtype):
    cache = PagedKV(
        num_blocks=5, num_kv_heads=3, block_size=4, head_dim=8, v_head_dim=6, dtype=dtype
    )
    assert cache.k.shape == (5, 3, 4, 8)
    assert cache.v.shape == (5, 3, 4, 6)
    assert not cache.k.any()
    k, v = torch.randn(3, 3, 8), torch.randn(3, 3, 6)
    slots = torch.tensor([0, 6, 19])
    cache.write(k, v, slots)
    for t, slot in enumerate(slots.tolist()):
        block, offset = divmod(slot, 4)
        assert torch.equal(cache.k[block, :, offset], k[t].to(dtype))
        assert torch.equal(cache.v[block, :, offset], v[t].to(dtype))
    assert int((cache.k != 0).any(-1).sum()) == 9  # nothing else was touched
    assert cache.nbytes == 5 * 4 * 3 * (8 + 6) * dtype.itemsize


def test_later_write_replaces():
    cache = PagedKV(num_blocks=2, num_kv_heads=1, block_size=2, head_dim=1)
    for value in (1.0, 2.0):
        cache.write(torch.full((1, 1, 1), value), torch.full((1, 1, 1), -value), torch.tensor([3]))
    assert cache.k.flatten().tolist() == [0, 0, 0, 2]
    assert cache.v.flatten().tolist() == [0, 0, 0, -2]


def test_copied_blocks():
    cache = PagedKV(num_blocks=4, num_kv_heads=2, block_size=2, head_dim=3)
    cache.k.normal_()
    cache.v.normal_()
    k, v = cache.k.clone(), cache.v.clone()
    cache.copy_blocks(torch.tensor([0, 1]), torch.tensor([3, 2]))
    assert torch.equal(cache.k, k[[0, 1, 1, 0]])
    assert torch.equal(cache.v, v[[0, 1, 1, 0]])


def test_storage_is_aligned_to_cache_lines():
    for _ in range(8):
        cache = PagedKV(num_blocks=3, num_kv_heads=1, block_size=2, head_dim=5)
        assert cache.k.data_ptr() % 64 == cache.v.data_ptr() % 64 == 0


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs Linux's /proc")
def test_memory_grows_only_with_use():
    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")

    before = resident()
    cache = PagedKV(num_blocks=4096, num_kv_heads=8, block_size=32, head_dim=64)
    assert cache.nbytes == 2**29
    assert resident() - before < 2**25
    slots = torch.arange(4096 * 32 // 4)
    cache.write(
        torch.ones(1, 8, 64).expand(len(slots), -1, -1),
        torch.ones(1, 8, 64).expand(len(slots), -1, -1),
        slots,
    )
    assert resident() - before >= 2**27


@pytest.mark.parametrize(
    ("spec", "per_token"),
    [
        (FullAttention(8, 64), 2 * 8 * 64),
        (FullAttention(4, 96, 64), 4 * (96 + 64)),
        (SlidingAttention(2, 32, window=128), 2 * 2 * 32),
    ],
)
def test_specs(spec, per_token):
    assert isinstance(spec, CacheSpec)
    assert spec.bytes_per_token(torch.float32) == 4 * per_token
    assert spec.bytes_per_token(torch.bfloat16) == 2 * per_token
    assert spec.bytes_per_seq(torch.float32) == 0
    cache = spec.allocate(
        num_blocks=3, block_size=16, num_seqs=2, dtype=torch.bfloat16, device=torch.device("cpu")
    )
    assert isinstance(cache, LayerCache)
    assert cache.nbytes == 3 * 16 * spec.bytes_per_token(torch.bfloat16)
    scales = 2 * 4 * spec.num_kv_heads
    assert spec.bytes_per_token(torch.float8_e4m3fn) == per_token + scales
    cache = spec.allocate(
        num_blocks=3, block_size=16, num_seqs=2, dtype=torch.int8, device=torch.device("cpu")
    )
    assert cache.nbytes == 3 * 16 * spec.bytes_per_token(torch.int8)


@pytest.mark.parametrize("arguments", [(0, 64), (8, 0), (8, 64, 0)])
def test_specs_refuse_nonsense(arguments):
    with pytest.raises(ValueError, match=">= 1"):
        FullAttention(*arguments)
