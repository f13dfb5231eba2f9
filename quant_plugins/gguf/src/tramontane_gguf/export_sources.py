"""Tensors of a Hugging Face checkpoint as `checkpoint` gives those of a GGUF file: the same names,
and one tensor where the file has one."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from attrs import frozen
from torch import Tensor

from tramontane.errors import ConfigError
from tramontane.protocols import Checkpoint, PackedWeight
from tramontane_gguf.blocks import GgmlWeight
from tramontane_gguf.latent import head_halves
from tramontane_gguf.mamba import as_in_gguf
from tramontane_gguf.types import BY_NAME, GgmlType

Read = Callable[[], Tensor | GgmlWeight]

_MXFP4 = "mxfp4.e2m1"
"""Format of weights whose ``blocks`` are ggml's."""

_TABLES = re.compile(r"(.*\.)?(rotary_emb\.(inv_freq|cos_cached|sin_cached)|attn\.(masked_)?bias)")
_BARE = re.compile(r"(layers\.\d+|embed_tokens|norm)\..*")
_LAYER = re.compile(r"model\.layers\.(\d+)\.")
_EXPERT = re.compile(r"(?P<stem>.*\.experts)\.(?P<index>\d+)\.(?P<leaf>\w+\.weight)")


@frozen
class Source:
    """One tensor to be written.

    Attributes:
        shape: torch order.
        read: gives it.
        stored: type of the ggml blocks it lies in already, or None.
    """

    shape: tuple[int, ...]
    read: Read
    stored: GgmlType | None = None


def gathered(checkpoint: Checkpoint, config: Mapping[str, Any]) -> dict[str, Source]:
    """Name → tensor, with experts in stacks, fused projections apart, and a tied head once.

    Raises:
        ConfigError: an expert is missing.
    """
    found: dict[str, Source] = {}
    experts: dict[str, dict[int, Source]] = {}
    stored = {
        f"model.{name}" if _BARE.fullmatch(name) else name: name
        for name in checkpoint.names()
        if not _TABLES.fullmatch(name)
    }
    for name, original in stored.items():
        if name == "lm_head.weight" and config.get("tie_word_embeddings"):
            if "model.embed_tokens.weight" in stored:
                continue
            name = "model.embed_tokens.weight"
        layer = _LAYER.match(name)
        # Layers past the last serve multi-token prediction, which is not run.
        if layer is not None and int(layer[1]) >= int(config["num_hidden_layers"]):
            continue
        source = _source(checkpoint, original)
        if part := _EXPERT.fullmatch(name):
            stack = experts.setdefault(f"{part['stem']}.{part['leaf']}", {})
            stack[int(part["index"])] = source
        else:
            found |= _rearranged(name, source, config)
    for name, parts in experts.items():
        found[name] = _stacked(name, parts)
    return found


def _source(checkpoint: Checkpoint, name: str) -> Source:
    value = checkpoint.tensor(name)
    shape = tuple(value.shape)
    if isinstance(value, PackedWeight) and value.format == _MXFP4:
        kind = BY_NAME["mxfp4"]
        return Source(shape, lambda: _blocks(checkpoint.tensor(name)), kind)

    def read() -> Tensor:
        value = checkpoint.tensor(name)
        return value.dequantize() if isinstance(value, PackedWeight) else value

    return Source(shape, read)


def _blocks(weight: Any) -> GgmlWeight:
    return GgmlWeight(weight.blocks, BY_NAME["mxfp4"], weight.shape)


def _stacked(name: str, parts: Mapping[int, Source]) -> Source:
    absent = sorted(set(range(max(parts) + 1)) - parts.keys())
    if absent:
        raise ConfigError(f"{name} lacks expert {', '.join(map(str, absent[:8]))}")
    ordered = [parts[index] for index in sorted(parts)]
    shape = (len(ordered), *ordered[0].shape)
    return Source(shape, lambda: torch.stack([plain(part.read()) for part in ordered]))


def plain(value: Tensor | GgmlWeight) -> Tensor:
    """A tensor, de-quantized where it is packed."""
    return value.dequantize() if isinstance(value, GgmlWeight) else value


def _rearranged(name: str, source: Source, config: Mapping[str, Any]) -> dict[str, Source]:
    """What becomes of a tensor that files have otherwise."""
    for pattern, rule in _RULES:
        if found := re.fullmatch(pattern, name):
            return rule(found, source, config)
    return {name: source}


def _mapped(source: Source, change: Callable[[Tensor], Tensor]) -> Source:
    """The tensor changed; its shape is found out without reading it."""
    shape = tuple(change(torch.empty(source.shape, device="meta")).shape)
    return Source(shape, lambda: change(plain(source.read())))


def _part(source: Source, axis: int, rows: slice) -> Source:
    """Rows along an axis, packed ones as they are."""
    index = (slice(None),) * axis + (rows,)
    shape = (*source.shape[:axis], len(range(source.shape[axis])[rows]), *source.shape[axis + 1 :])

    def read() -> Tensor | GgmlWeight:
        value = source.read()
        if isinstance(value, GgmlWeight):
            return GgmlWeight(value.blocks[index].contiguous(), value.type, shape)
        return value[index]

    return Source(shape, read, source.stored)


def _halves(source: Source, axis: int) -> tuple[Source, Source]:
    half = source.shape[axis] // 2
    return _part(source, axis, slice(0, half)), _part(source, axis, slice(half, 2 * half))


# Rules -----------------------------------------------------------------------------------------

_Rule = Callable[[re.Match[str], Source, Mapping[str, Any]], dict[str, Source]]


def _stacks(found: re.Match[str], source: Source, config: Mapping[str, Any]) -> dict[str, Source]:
    """Stacks as transformers writes them: gate above up in one, down in another."""
    stem, leaf = found["stem"], found["leaf"]
    if config.get("model_type") == "gpt_oss":
        return _gpt_oss(stem, leaf, found["bias"] or "", source)
    if leaf == "down_proj":
        return {f"{stem}.down_proj.weight": source}
    gate, up = _halves(source, 1)
    return {f"{stem}.gate_proj.weight": gate, f"{stem}.up_proj.weight": up}


def _gpt_oss(stem: str, leaf: str, bias: str, source: Source) -> dict[str, Source]:
    """Plain stacks lie as [experts, in, out]; gate and up take turns."""
    if not bias and source.stored is None:
        source = _mapped(source, lambda t: t.mT)
    suffix = "bias" if bias else "weight"
    if leaf == "down_proj":
        return {f"{stem}.down_proj.{suffix}": source}
    return {
        f"{stem}.gate_proj.{suffix}": _part(source, 1, slice(0, None, 2)),
        f"{stem}.up_proj.{suffix}": _part(source, 1, slice(1, None, 2)),
    }


def _granite(found: re.Match[str], source: Source, config: Mapping[str, Any]) -> dict[str, Source]:
    """Gate above up, of the shared MLP and of the experts."""
    routed = found["owner"] == "block_sparse_moe"
    stem = f"{found['stem']}.{found['owner']}{'.experts' if routed else ''}"
    if found["leaf"] == "output_linear":
        return {f"{stem}.{'down_proj' if routed else 'output_linear'}.weight": source}
    gate, up = _halves(source, len(source.shape) - 2)
    return {f"{stem}.gate_proj.weight": gate, f"{stem}.up_proj.weight": up}


def _router(found: re.Match[str], source: Source, config: Mapping[str, Any]) -> dict[str, Source]:
    return {f"{found['stem']}.layer.weight": source}


def _mamba(found: re.Match[str], source: Source, config: Mapping[str, Any]) -> dict[str, Source]:
    groups = int(config.get("mamba_n_groups") or 1)
    return {found[0]: _mapped(source, lambda t: as_in_gguf(found["leaf"], t, groups))}


def _latent(found: re.Match[str], source: Source, config: Mapping[str, Any]) -> dict[str, Source]:
    keys, values = (
        _mapped(source, lambda t, half=half: head_halves(t, config)[half])  # type: ignore[misc]
        for half in (0, 1)
    )
    stem = found["stem"]
    return {f"{stem}.k_b_proj.weight": keys, f"{stem}.v_b_proj.weight": values}


_RULES: tuple[tuple[str, _Rule], ...] = (
    (r"(?P<stem>.*\.experts)\.(?P<leaf>gate_up_proj|down_proj)(?P<bias>_bias)?", _stacks),
    (
        r"(?P<stem>.*)\.(?P<owner>shared_mlp|block_sparse_moe)"
        r"\.(?P<leaf>input_linear|output_linear)\.weight",
        _granite,
    ),
    (r"(?P<stem>.*\.block_sparse_moe\.router)\.weight", _router),
    (r".*\.mamba\.(?P<leaf>A_log|D|norm\.weight|conv1d\.weight)", _mamba),
    (r"(?P<stem>.*)\.kv_b_proj\.weight", _latent),
)
