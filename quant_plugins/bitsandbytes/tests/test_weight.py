"""`CodebookWeight` against arithmetic written out here, whatever way rows lie in blocks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tramontane_bitsandbytes.weight import CodebookWeight, NestedScales

TABLE = torch.linspace(-1, 1, 16)


def make(shape, block=32, *, nested=False, seed=0):
    """A weight and its plain numbers."""
    rng = np.random.default_rng(seed)
    count = shape[0] * shape[1]
    codes = rng.integers(0, 16, count + count % 2).astype(np.uint8)
    blocks = -(-count // block)
    if nested:
        size, table = 32, rng.normal(size=256).astype(np.float32)
        small = rng.integers(0, 256, blocks).astype(np.uint8)
        large = rng.uniform(0.5, 2, -(-blocks // size)).astype(np.float32)
        values = table[small] * large[np.arange(blocks) // size] + np.float32(0.25)
        scales = NestedScales(
            codes=torch.from_numpy(small),
            table=torch.from_numpy(table),
            scales=torch.from_numpy(large),
            offset=torch.tensor(0.25),
            size=size,
        )
    else:
        values = rng.uniform(0.5, 2, blocks).astype(np.float32)
        scales = torch.from_numpy(values)
    plain = TABLE.numpy()[codes[:count]] * values[np.arange(count) // block]
    packed = torch.from_numpy(codes[0::2] << 4 | codes[1::2])
    weight = CodebookWeight(packed, scales, TABLE, shape, kind="nf4", block=block)
    return weight, torch.from_numpy(plain.astype(np.float32).reshape(shape))


SHAPES = [(64, 64), (40, 48), (33, 31), (5, 7), (3000, 32)]


@pytest.mark.parametrize("nested", [False, True], ids=["plain", "nested"])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_way_to_read_it(shape, nested):
    weight, plain = make(shape, nested=nested)
    assert torch.equal(weight.dequantize(), plain)
    index = torch.tensor([shape[0] - 1, 0, 2])
    assert torch.equal(weight.gather(index), plain[index])
    assert torch.equal(weight.gather(index[:0]), plain[index[:0]])
    for start, stop in ((0, shape[0]), (1, 4), (2, 3), (3, shape[0]), (4, 4)):
        part = weight.rows(start, stop)
        assert torch.equal(part.dequantize(), plain[start:stop])
        assert torch.equal(part.rows(0, 1).dequantize(), plain[start:stop][:1])
        if stop > start:
            assert torch.equal(part.gather(torch.tensor([0])), plain[start : start + 1])


def test_chunks_and_types(monkeypatch):
    monkeypatch.setattr("tramontane_bitsandbytes.weight._CHUNK", 96)
    weight, plain = make((33, 31), nested=True)
    assert torch.equal(weight.dequantize(torch.bfloat16), plain.bfloat16())
    assert torch.equal(weight.rows(3, 20).dequantize(), plain[3:20])


def test_concatenation():
    one, plain = make((4, 48))
    two, other = make((3, 48), nested=True, seed=1)
    assert torch.equal(CodebookWeight.concat([one, two]).dequantize(), torch.cat([plain, other]))
    for parts in ([two, one], [one, one.rows(1, 2)], [one, make((4, 64))[0]], []):
        with pytest.raises(ValueError, match=r"cannot follow|nothing"):
            CodebookWeight.concat(parts)


def test_bytes():
    weight, _ = make((64, 64), nested=True)
    assert weight.nbytes == 64 * 64 // 2 + 128 + 256 * 4 + 4 * 4 + 4 + 16 * 4


@pytest.mark.parametrize(
    "change",
    [
        {"codes": torch.zeros(31, dtype=torch.uint8)},
        {"codes": torch.zeros(32)},
        {"scales": torch.ones(3)},
        {"table": torch.ones(15)},
        {"shape": (64,)},
        {"block": 31},
        {"block": 0},
    ],
)
def test_parts_that_do_not_fit(change):
    good = {
        "codes": torch.zeros(32, dtype=torch.uint8),
        "scales": torch.ones(2),
        "table": TABLE,
        "shape": (2, 32),
        "kind": "nf4",
        "block": 32,
    }
    CodebookWeight(**good)
    with pytest.raises(ValueError, match=r"take|has no"):
        CodebookWeight(**good | change)
