"""Attention over the block KV cache: flash-style, one pass over keys and values.

Scores of a block of keys, then a running maximum and sum, then the weighted values (Milakov and
Gimelshein, arXiv:1805.02867; Dao et al., arXiv:2205.14135). Heads that share a key head read it
together. With few queries a long context is split between the threads.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from tramontane.kernels import reference
from tramontane.kernels.reference import PagedStorage
from tramontane.protocols import ForwardBatch
from tramontane_kernels_cpu.library import check, native, threads, variant, why_not

KV_DTYPES = {
    torch.float32: 0,
    torch.bfloat16: 1,
    torch.float16: 2,
    torch.float8_e4m3fn: 3,
    torch.int8: 4,
}

LONG_PROMPT = 1024
"""Queries of one sequence from which torch's matrix products win over reading the cache once a
query."""


class AttentionRecord(ctypes.Structure):
    """``Attention`` of attention.h."""

    _fields_ = (
        ("num_heads", ctypes.c_int64),
        ("num_kv_heads", ctypes.c_int64),
        ("head_dim", ctypes.c_int64),
        ("v_head_dim", ctypes.c_int64),
        ("k", ctypes.c_void_p),
        ("v", ctypes.c_void_p),
        ("block_size", ctypes.c_int64),
        ("kv_dtype", ctypes.c_int64),
        ("scale", ctypes.c_double),
        ("softcap", ctypes.c_double),
        ("window", ctypes.c_int64),
        ("sinks", ctypes.c_void_p),
        ("k_scales", ctypes.c_void_p),
        ("v_scales", ctypes.c_void_p),
    )


class SequencesRecord(ctypes.Structure):
    """``Sequences`` of attention.h."""

    _fields_ = (
        ("starts", ctypes.c_void_p),
        ("lengths", ctypes.c_void_p),
        ("tables", ctypes.c_void_p),
        ("table_stride", ctypes.c_int64),
        ("count", ctypes.c_int64),
    )


def sequences_record(batch: ForwardBatch) -> SequencesRecord:
    """Addresses of ``batch``'s tensors, which must live as long as the record is used."""
    tables = batch.block_tables
    return SequencesRecord(
        batch.query_starts.data_ptr(),
        batch.context_lens.data_ptr(),
        tables.data_ptr(),
        tables.stride(0),
        len(batch.query_lens),
    )


def attention_record(
    num_heads: int,
    cache: PagedStorage,
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> AttentionRecord:
    """Settings and storage of one layer; ``sinks`` in float32."""
    k, v = cache.k, cache.v
    return AttentionRecord(
        num_heads,
        k.shape[1],
        k.shape[3],
        v.shape[3],
        k.data_ptr(),
        v.data_ptr(),
        k.shape[2],
        KV_DTYPES[k.dtype],
        scale,
        softcap or 0.0,
        window or 0,
        None if sinks is None else sinks.data_ptr(),
        None if cache.k_scales is None else cache.k_scales.data_ptr(),
        None if cache.v_scales is None else cache.v_scales.data_ptr(),
    )


def paged_attention(
    q: Tensor,
    cache: PagedStorage,
    batch: ForwardBatch,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """`tramontane.kernels.reference.paged_attention`, natively; float32 arithmetic throughout."""
    if max(batch.query_lens) >= LONG_PROMPT:
        return reference.paged_attention(
            q, cache, batch, scale=scale, window=window, softcap=softcap, sinks=sinks
        )
    library = native()
    assert library is not None
    num_tokens, num_heads, _ = q.shape
    sinks = None if sinks is None else sinks.float().contiguous()
    record = attention_record(
        num_heads, cache, scale=scale, window=window, softcap=softcap, sinks=sinks
    )
    queries = q.float().contiguous()
    out = torch.empty(num_tokens, num_heads, cache.v.shape[3])
    check(
        library.calls.tmk_attention(
            ctypes.byref(record),
            ctypes.byref(sequences_record(batch)),
            queries.data_ptr(),
            num_tokens,
            out.data_ptr(),
            threads(),
        )
    )
    return out.to(q.dtype)


def supports(**facts: Any) -> bool:
    return facts.get("dtype") in KV_DTYPES


paged_attention.why_not = why_not  # type: ignore[attr-defined]
paged_attention.variant = variant  # type: ignore[attr-defined]
paged_attention.supports = supports  # type: ignore[attr-defined]
