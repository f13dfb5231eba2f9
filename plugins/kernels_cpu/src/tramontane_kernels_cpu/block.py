"""Whole modules in one native call: attention with its projections, the gated MLP, a layer of both
or of attention and experts, and all such layers of a decoder.

Each function takes a module whose weights are in place and gives what computes its ``forward``,
or None where something in it is not covered. What is given may itself give None for a call that it
does not cover; the module then computes as if it had never been asked.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from attrs import define, field
from torch import Tensor, nn

from tramontane.cache import PagedKV
from tramontane.nn import (
    AdjacentRope,
    GatedMLP,
    MoE,
    NarrowLinear,
    PackedLinear,
    PreNormLayer,
    RMSNorm,
    Rope,
    SelfAttention,
)
from tramontane.protocols import ForwardBatch
from tramontane_kernels_cpu.attention import (
    KV_DTYPES,
    LONG_PROMPT,
    AttentionRecord,
    SequencesRecord,
    attention_record,
    sequences_record,
)
from tramontane_kernels_cpu.experts import bind_experts, bind_router
from tramontane_kernels_cpu.library import check, native, threads, why_not
from tramontane_kernels_cpu.parts import ACTS, Whole, is_plain, listened
from tramontane_kernels_cpu.weights import NativeWeight

_MAX_ROTARY = 512


class _Block(ctypes.Structure):
    """``Block`` of block.cpp."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("q", "k", "v", "o", "gate", "up", "down")),
        *((f"{name}_norm", ctypes.c_void_p) for name in ("attn", "q", "k", "mlp")),
        *((f"{name}_eps", ctypes.c_double) for name in ("attn", "q", "k", "mlp")),
        ("act", ctypes.c_int64),
        ("residual", ctypes.c_int64),
        ("experts", ctypes.c_void_p),
        ("router", ctypes.c_void_p),
    )


class _Step(ctypes.Structure):
    """``Step`` of block.cpp."""

    _fields_ = (
        ("T", ctypes.c_int64),
        ("seqs", SequencesRecord),
        ("slots", ctypes.c_void_p),
        ("cos", ctypes.c_void_p),
        ("sin", ctypes.c_void_p),
        ("rotary_dim", ctypes.c_int64),
        ("adjacent", ctypes.c_int64),
    )


@define(eq=False)
class _Bound:
    """A module's part of a call.

    Attributes:
        block: its record.
        kept: what the record points to.
        modules: those whose forward is not called, which others may listen to.
        attention: its attention, or None.
        sinks: in float32.
        most_rows: rows of activations above which its parts are faster one by one.
        records: of each cache that it has met, by identity; a cache lives as long as the engine.
    """

    block: _Block
    kept: list[Any]
    modules: list[nn.Module] = field(factory=list)
    attention: SelfAttention | None = None
    sinks: Tensor | None = None
    most_rows: int = LONG_PROMPT
    records: dict[int, tuple[PagedKV, AttentionRecord]] = field(factory=dict)


_step: tuple[ForwardBatch, Rope | None, _Step] | None = None
"""The last step's record, which all its layers share."""


def self_attention(module: nn.Module, dtype: torch.dtype) -> Whole | None:
    """`tramontane.nn.SelfAttention`."""
    bound = _new(dtype)
    if bound is None or not _add_attention(bound, module):
        return None
    return partial(_attention_forward, bound)


def gated_mlp(module: nn.Module, dtype: torch.dtype) -> Whole | None:
    """`tramontane.nn.GatedMLP`."""
    bound = _new(dtype)
    if bound is None or not _add_mlp(bound, module):
        return None
    return partial(_mlp_forward, bound)


def pre_norm_layer(module: nn.Module, dtype: torch.dtype) -> Whole | None:
    """`tramontane.nn.PreNormLayer` of attention, gated MLP or mixture of experts, and RMSNorms."""
    bound = _layer(module, dtype)
    return None if bound is None else partial(_attention_forward, bound)


def decoder_layers(module: nn.Module, dtype: torch.dtype) -> Whole | None:
    """All layers of `tramontane.nn.Decoder`, where each is such a `PreNormLayer`."""
    layers: list[_Bound] = []
    for layer in module.layers:  # type: ignore[union-attr]
        bound = _layer(layer, dtype) if is_plain(layer, PreNormLayer) else None
        if bound is None:
            return None
        bound.modules.append(layer)
        layers.append(bound)
    return partial(_layers_forward, layers) if layers else None


def _layer(module: nn.Module, dtype: torch.dtype) -> _Bound | None:
    bound = _new(dtype)
    if bound is None or not isinstance(module, PreNormLayer):
        return None
    if not _add_attention(bound, module.self_attn):
        return None
    if not _add_mlp(bound, module.mlp) and not _add_experts(bound, module.mlp):
        return None
    if not _add_norm(bound, "attn", module.input_layernorm):
        return None
    if not _add_norm(bound, "mlp", module.post_attention_layernorm):
        return None
    bound.block.residual = 1
    bound.modules += list(module.children())
    return bound


def _new(dtype: torch.dtype) -> _Bound | None:
    return _Bound(_Block(), []) if dtype == torch.float32 else None


def _add_attention(bound: _Bound, module: nn.Module) -> bool:
    if not is_plain(module, SelfAttention) or not isinstance(module, SelfAttention):
        return False
    if module.operator != "paged_attention":
        return False
    names = ("q", "k", "v", "o")
    projections = [getattr(module, f"{name}_proj") for name in names]
    if not _add_linears(bound, names, projections, alike=3):
        return False
    for name, norm in (("q", module.q_norm), ("k", module.k_norm)):
        if norm is not None and not _add_norm(bound, name, norm):
            return False
    bound.attention = module
    if module.sinks is not None:
        bound.sinks = module.sinks.detach().float().contiguous()
    return True


def _add_mlp(bound: _Bound, module: nn.Module) -> bool:
    if not is_plain(module, GatedMLP) or not isinstance(module, GatedMLP):
        return False
    if module.act not in ACTS:
        return False
    bound.block.act = ACTS[module.act]
    names = ("gate", "up", "down")
    parts = [getattr(module, f"{name}_proj") for name in names]
    gate, up, _ = (getattr(part, "operand", None) for part in parts)
    if getattr(gate, "apart", 1) != getattr(up, "apart", 1):
        return False  # their rows are computed in pairs
    return _add_linears(bound, names, parts, alike=2)


def _add_experts(bound: _Bound, module: nn.Module) -> bool:
    if not is_plain(module, MoE) or not isinstance(module, MoE):
        return False
    experts, router = bind_experts(module.experts), bind_router(module, bound.kept)
    if experts is None or router is None:
        return False
    bound.block.experts, bound.block.router = map(ctypes.addressof, (experts.record, router))
    bound.kept += [experts, router]
    bound.modules += [module.gate, module.experts, *experts.modules]
    bound.most_rows = min(bound.most_rows, experts.most_pairs // router.top_k)
    return True


def _add_linears(
    bound: _Bound, names: tuple[str, ...], modules: list[nn.Module], alike: int
) -> bool:
    """Weights of the kernels' own; the first ``alike`` must round their activations alike."""
    operands: list[NativeWeight] = []
    for module in modules:
        operand = getattr(module, "operand", None)
        known = is_plain(module, PackedLinear) or is_plain(module, NarrowLinear)
        if not known or not isinstance(operand, NativeWeight) or operand.order is not None:
            return False
        bias: Any = module.bias
        operands.append(operand if bias is None else operand.biased(bias))
    if len({operand.super_columns for operand in operands[:alike]}) > 1:
        return False
    for name, operand in zip(names, operands, strict=True):
        setattr(bound.block, name, operand.address)
    bound.kept += operands
    bound.modules += modules
    limits = [operand.many_rows for operand in operands if operand.many_rows is not None]
    bound.most_rows = min([bound.most_rows, *limits])
    return True


def _add_norm(bound: _Bound, name: str, module: nn.Module) -> bool:
    if not is_plain(module, RMSNorm):
        return False
    weight = module.weight.detach().float().contiguous()  # type: ignore[operator]
    setattr(bound.block, f"{name}_norm", weight.data_ptr())
    setattr(bound.block, f"{name}_eps", module.eps)
    bound.kept.append(weight)
    return True


def _attention_forward(
    bound: _Bound, h: Tensor, rope: Rope | None, batch: ForwardBatch, cache: Any
) -> Tensor | None:
    return _layers_forward([bound], h, rope, batch, [cache])


def _layers_forward(
    layers: list[_Bound], h: Tensor, rope: Rope | None, batch: ForwardBatch, caches: Sequence[Any]
) -> Tensor | None:
    if h.dtype != torch.float32:
        return None
    records = []
    for bound, cache in zip(layers, caches, strict=True):
        if batch.num_tokens >= bound.most_rows or listened(bound.modules):
            return None
        record = _record_of(bound, cache)
        if record is None:
            return None
        records.append(record)
    step = _step_of(batch, rope)
    return None if step is None else _call(layers, records, step, h)


def _record_of(bound: _Bound, cache: Any) -> AttentionRecord | None:
    found = bound.records.get(id(cache))
    if found is None:
        if type(cache) is not PagedKV or cache.k.dtype not in KV_DTYPES:
            return None
        module = bound.attention
        assert module is not None
        record = attention_record(
            module.num_heads,
            cache,
            scale=module.scale,
            window=module.window,
            softcap=module.softcap,
            sinks=bound.sinks,
        )
        found = bound.records[id(cache)] = (cache, record)
    return found[1]


def _mlp_forward(bound: _Bound, x: Tensor) -> Tensor | None:
    rows = x.numel() // x.shape[-1]
    if x.dtype != torch.float32 or rows >= bound.most_rows or listened(bound.modules):
        return None
    step = _Step()
    step.T = rows
    return _call([bound], [None], step, x)


def _call(
    layers: list[_Bound], records: Sequence[AttentionRecord | None], step: _Step, h: Tensor
) -> Tensor:
    library = native()
    assert library is not None
    h = h.contiguous()
    out = torch.empty_like(h)
    pointers = ctypes.c_void_p * len(layers)
    check(
        library.calls.tmk_blocks(
            pointers(*(ctypes.addressof(bound.block) for bound in layers)),
            pointers(*(None if one is None else ctypes.addressof(one) for one in records)),
            len(layers),
            ctypes.byref(step),
            h.data_ptr(),
            out.data_ptr(),
            threads(),
        )
    )
    return out


def _step_of(batch: ForwardBatch, rope: Rope | None) -> _Step | None:
    """The record of a step, made once; None where the rotation is of an unknown kind."""
    global _step
    last = _step
    if last is not None and last[0] is batch and last[1] is rope:
        return last[2]
    step = _Step(batch.num_tokens, sequences_record(batch), batch.slots.data_ptr())
    if rope is not None:
        cos, sin = rope.cos, rope.sin
        if type(rope) not in (Rope, AdjacentRope) or cos.shape[-1] > _MAX_ROTARY:
            return None
        if cos.dtype != torch.float32 or not cos.is_contiguous() or not sin.is_contiguous():
            return None
        step.cos, step.sin, step.rotary_dim = cos.data_ptr(), sin.data_ptr(), cos.shape[-1]
        step.adjacent = type(rope) is AdjacentRope
    _step = (batch, rope, step)
    return step


for _function in (self_attention, gated_mlp, pre_norm_layer, decoder_layers):
    _function.why_not = why_not  # type: ignore[attr-defined]
