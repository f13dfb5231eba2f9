"""The contract of a kernel: equal to the reference over awkward shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest
import torch
from attrs import frozen
from torch import Tensor

from tramontane.cache import PagedKV
from tramontane.kernels.eight_bit import dequantize
from tramontane.kernels.reference import OPERATORS
from tramontane.protocols import ForwardBatch, PackedWeight


@frozen(kw_only=True)
class AttentionShape:
    """One case of ``paged_attention``.

    Attributes:
        seqs: for each sequence, new tokens and tokens in all.
    """

    seqs: tuple[tuple[int, int], ...]
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 8
    v_head_dim: int = 8
    block_size: int = 4
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False


DECODE = ((1, 1), (1, 4), (1, 5), (1, 33), (1, 64))
MIXED = ((5, 5), (1, 17), (3, 20), (1, 1), (16, 16))
ATTENTION_SHAPES: dict[str, AttentionShape] = {
    "one decode step": AttentionShape(seqs=((1, 13),)),
    "first token": AttentionShape(seqs=((1, 1),)),
    "whole prompt": AttentionShape(seqs=((13, 13),)),
    "chunk": AttentionShape(seqs=((6, 21),)),
    "decode": AttentionShape(seqs=DECODE),
    "mixed": AttentionShape(seqs=MIXED),
    "multi-head": AttentionShape(seqs=MIXED, num_kv_heads=4),
    "multi-query": AttentionShape(seqs=MIXED, num_kv_heads=1),
    "odd head size": AttentionShape(seqs=MIXED, head_dim=6, v_head_dim=6, num_heads=6),
    "other value size": AttentionShape(seqs=MIXED, head_dim=8, v_head_dim=12),
    "large blocks": AttentionShape(seqs=MIXED, block_size=32),
    "window": AttentionShape(seqs=MIXED, window=6),
    "window of one": AttentionShape(seqs=MIXED, window=1),
    "window of a block": AttentionShape(seqs=MIXED + DECODE, window=4),
    "window beyond all": AttentionShape(seqs=MIXED, window=1000),
    "decode in a window": AttentionShape(seqs=DECODE, window=7),
    "softcap": AttentionShape(seqs=MIXED, softcap=2.0),
    "softcap in a window": AttentionShape(seqs=MIXED + DECODE, softcap=2.0, window=6),
    "sinks": AttentionShape(seqs=MIXED + DECODE, sinks=True),
    "sinks in a window": AttentionShape(seqs=MIXED, sinks=True, window=5),
    "long prompt written out": AttentionShape(seqs=((300, 310), (1, 7)), softcap=5.0, sinks=True),
}


def attention_case(
    shape: AttentionShape,
    device: torch.device,
    dtype: torch.dtype,
    cache_dtype: torch.dtype | None = None,
) -> tuple[Tensor, PagedKV, ForwardBatch, dict[str, Any]]:
    """Random arguments of ``paged_attention``: q, cache, batch and keyword arguments.

    Blocks are scattered, and every slot that belongs to no token holds a large number, so that
    reading it shows.

    Args:
        dtype: of the queries, and of the cache where ``cache_dtype`` is None.
    """
    generator = torch.Generator().manual_seed(0)
    size = shape.block_size
    needs = [-(-total // size) for _, total in shape.seqs]
    num_blocks = sum(needs) + 3
    cache = PagedKV(
        num_blocks=num_blocks,
        num_kv_heads=shape.num_kv_heads,
        block_size=size,
        head_dim=shape.head_dim,
        v_head_dim=shape.v_head_dim,
        dtype=cache_dtype or dtype,
        device=device,
    )
    every = torch.arange(num_blocks * size, device=device)
    large = torch.ones(len(every), shape.num_kv_heads, 1, device=device)
    cache.write(
        50.0 * large.expand(-1, -1, shape.head_dim),
        1e4 * large.expand(-1, -1, shape.v_head_dim),
        every,
    )
    order = torch.randperm(num_blocks, generator=generator).tolist()
    tables = torch.full((len(needs), max(needs)), -1, dtype=torch.int32)
    slots: list[Tensor] = []
    for row, (count, (new, total)) in enumerate(zip(needs, shape.seqs, strict=True)):
        tables[row, :count] = torch.tensor([order.pop() for _ in range(count)])
        position = torch.arange(total)
        mine = tables[row, position // size].long() * size + position % size
        k = torch.randn(total, shape.num_kv_heads, shape.head_dim, generator=generator)
        v = torch.randn(total, shape.num_kv_heads, shape.v_head_dim, generator=generator)
        cache.write(k.to(device), v.to(device), mine.to(device))
        slots.append(mine[total - new :])
    new_lens, totals = [n for n, _ in shape.seqs], [t for _, t in shape.seqs]
    num_tokens = sum(new_lens)
    starts = torch.tensor([0, *torch.tensor(new_lens).cumsum(0).tolist()], dtype=torch.int32)
    batch = ForwardBatch(
        token_ids=torch.zeros(num_tokens, dtype=torch.int64, device=device),
        positions=torch.cat([torch.arange(t - n, t) for n, t in shape.seqs]).to(device),
        query_starts=starts.to(device),
        context_lens=torch.tensor(totals, dtype=torch.int32, device=device),
        slots=torch.cat(slots).to(device),
        block_tables=tables.to(device),
        logit_rows=torch.arange(num_tokens, device=device),
        query_lens=new_lens,
        kv_lens=totals,
    )
    q = torch.randn(num_tokens, shape.num_heads, shape.head_dim, generator=generator)
    sinks = torch.randn(shape.num_heads, generator=generator).to(device) if shape.sinks else None
    options = {"scale": 0.4, "window": shape.window, "softcap": shape.softcap, "sinks": sinks}
    return q.to(device, dtype), cache, batch, options


def naive_attention(
    q: Tensor,
    cache: PagedKV,
    batch: ForwardBatch,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """``paged_attention`` token by token and head by head in float64: what the words say."""
    num_tokens, num_heads, _ = q.shape
    group = num_heads // cache.k.shape[1]
    out = torch.empty(num_tokens, num_heads, cache.v.shape[-1], dtype=torch.float64)
    keys = dequantize(cache.k, cache.k_scales, torch.float64).cpu()
    values = dequantize(cache.v, cache.v_scales, torch.float64).cpu()
    row = 0
    for seq, count in enumerate(batch.query_lens):
        for position in range(batch.kv_lens[seq] - count, batch.kv_lens[seq]):
            oldest = 0 if window is None else max(0, position - window + 1)
            seen = torch.arange(oldest, position + 1)
            blocks = batch.block_tables[seq].cpu()[seen // cache.block_size].long()
            for head in range(num_heads):
                k = keys[blocks, head // group, seen % cache.block_size]
                v = values[blocks, head // group, seen % cache.block_size]
                scores = k @ q[row, head].cpu().double() * scale
                if softcap is not None:
                    scores = softcap * torch.tanh(scores / softcap)
                if sinks is not None:
                    scores = torch.cat((scores, sinks[head].cpu().double()[None]))
                weights = scores.softmax(0)[: len(seen)]
                out[row, head] = weights @ v
            row += 1
    return out.to(q.dtype)


class KernelContract:
    """Subclass, name it ``Test…`` and fill in the attributes; give ``packed`` for
    ``packed_linear``.

    Attributes:
        op: the operator.
        kernel: its implementation, a callable with the signature of the reference.
        device: where to run it.
        dtypes: activation types to test, with their tolerances.
    """

    op: ClassVar[str]
    kernel: ClassVar[Callable[..., Tensor]]
    device: ClassVar[str] = "cpu"
    dtypes: ClassVar[dict[torch.dtype, float]] = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
    rows: ClassVar[tuple[int, ...]] = (1, 2, 7, 33)

    def packed(self) -> Iterator[PackedWeight]:
        """Weights of shape (out, in) to multiply with, of several sizes."""
        raise NotImplementedError("give the packed weights that this kernel multiplies with")

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "shape" in metafunc.fixturenames:
            shapes = ATTENTION_SHAPES if self.op == "paged_attention" else {}
            metafunc.parametrize("shape", list(shapes.values()), ids=list(shapes))
        if "dtype" in metafunc.fixturenames:
            metafunc.parametrize("dtype", list(self.dtypes), ids=str)

    @pytest.fixture
    def target(self) -> torch.device:
        if self.device == "cuda" and not torch.cuda.is_available():
            pytest.skip("no CUDA device")
        return torch.device(self.device)

    def test_attention(
        self, shape: AttentionShape, dtype: torch.dtype, target: torch.device
    ) -> None:
        q, cache, batch, options = attention_case(shape, target, dtype)
        actual = type(self).kernel(q, cache, batch, **options)
        expected = naive_attention(q, cache, batch, **options).to(target)
        assert actual.dtype == dtype
        tolerance = self.dtypes[dtype]
        torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)

    def test_packed_linear(self, dtype: torch.dtype, target: torch.device) -> None:
        if self.op != "packed_linear":
            pytest.skip(f"{self.op} is another operator")
        generator = torch.Generator().manual_seed(0)
        for weight in self.packed():
            packed = weight.to(target)
            num_out, num_in = packed.shape
            bias = torch.randn(num_out, generator=generator).to(target, dtype)
            for count in self.rows:
                x = torch.randn(count, num_in, generator=generator).to(target, dtype)
                for b in (None, bias):
                    actual = type(self).kernel(x, packed, b)
                    expected = OPERATORS["packed_linear"](x, packed, b)
                    tolerance = self.dtypes[dtype]
                    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def assert_odd_activations_stay_in_their_token(multiply: Callable[[Tensor], Tensor]) -> None:
    """Hold a linear, [T, 256] to [T, out], to what NaN, infinity, zeros and denormal numbers may
    do: reach their own token's results, and nobody else's."""
    x = torch.randn(6, 256, generator=torch.Generator().manual_seed(4))
    clean = multiply(x)
    x[1, 5], x[2, 77], x[3], x[4] = torch.nan, torch.inf, 0.0, 1e-40
    got = multiply(x)
    assert got[1].isnan().all()
    assert not got[2].isfinite().any()
    assert (got[3] == 0).all()
    assert got[4].abs().max() < 1e-30
    assert torch.equal(got[[0, 5]], clean[[0, 5]])
