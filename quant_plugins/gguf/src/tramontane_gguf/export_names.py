"""Tensors of a Hugging Face checkpoint as a GGUF file has them: the reverse of `checkpoint`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from attrs import frozen
from torch import Tensor

from tramontane.errors import ConfigError, UnsupportedError
from tramontane.protocols import Checkpoint, PackedWeight
from tramontane_gguf.families import FAMILIES, Family
from tramontane_gguf.tensor_names import TensorNames, adjacent_pair_order, parse

_WRITTEN: dict[str, str] = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "MixtralForCausalLM": "llama",
    "SmolLM3ForCausalLM": "smollm3",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3MoeForCausalLM": "qwen3moe",
    "PhiForCausalLM": "phi2",
    "Phi3ForCausalLM": "phi3",
    "Starcoder2ForCausalLM": "starcoder2",
    "GemmaForCausalLM": "gemma",
    "Gemma2ForCausalLM": "gemma2",
    "Gemma3ForCausalLM": "gemma3",
    "Glm4ForCausalLM": "glm4",
}
"""Entry of ``architectures`` → ``general.architecture`` of the file."""

_TABLES = re.compile(r"(.*\.)?(rotary_emb\.(inv_freq|cos_cached|sin_cached)|attn\.(masked_)?bias)")
_EXPERT = re.compile(r"(?P<stem>.*\.experts)\.(?P<index>\d+)\.(?P<leaf>\w+\.weight)")
_STACK = re.compile(r"(?P<stem>.*\.experts)\.(?P<leaf>gate_up_proj|down_proj)")


@frozen(kw_only=True)
class Outgoing:
    """One tensor of the file to be.

    Attributes:
        name: in the file.
        module: of Hugging Face, without ``.weight``; what importances go by.
        shape: torch order.
        make: reads it.
    """

    name: str
    module: str
    shape: tuple[int, ...]
    make: Callable[[], Tensor]


def family_for(config: Mapping[str, Any]) -> Family:
    """The family in which a model is written.

    Raises:
        UnsupportedError: there is none; lists those there are.
    """
    names = config.get("architectures") or []
    for name in names:
        if name in _WRITTEN:
            return FAMILIES[_WRITTEN[name]]
    raise UnsupportedError(
        f"{', '.join(map(str, names)) or 'a model without architectures'} cannot be written as "
        f"GGUF; it works for {', '.join(_WRITTEN)}"
    )


def outgoing(checkpoint: Checkpoint, config: Mapping[str, Any], family: Family) -> list[Outgoing]:
    """Every tensor of a model, in the order of layers.

    Raises:
        ConfigError: a tensor has no place in files of this family.
    """
    moe = any(config.get(key) for key in ("num_local_experts", "num_experts"))
    names = TensorNames(family, moe=moe)
    standard = TensorNames(Family(name=family.name, architecture=""), moe=moe)
    found: dict[str, Outgoing] = {}
    for hf_name, (shape, read) in _gathered(checkpoint, config).items():
        name = names.to_gguf(hf_name)
        if name == hf_name:
            name = standard.to_gguf(hf_name)
        if name == hf_name:
            raise ConfigError(
                f"{hf_name} has no place in a GGUF file of family {family.name}: the checkpoint "
                f"is of another architecture, or holds more than the model"
            )
        module = hf_name.removesuffix(".weight")
        make = _arranged(name, read, config, family)
        found[name] = Outgoing(name=name, module=module, shape=shape, make=make)
    return sorted(found.values(), key=_order)


def _order(tensor: Outgoing) -> tuple[int, int, str]:
    parsed = parse(tensor.name)
    layer = -1 if parsed is None or parsed.layer is None else parsed.layer
    return (1 if tensor.name.startswith("output") else 0, layer, tensor.name)


_Read = tuple[tuple[int, ...], Callable[[], Tensor]]


def _gathered(checkpoint: Checkpoint, config: Mapping[str, Any]) -> dict[str, _Read]:
    """Name → shape and reader, with experts in stacks and a tied head once."""

    def reader(name: str) -> Callable[[], Tensor]:
        return lambda: _plain(checkpoint.tensor(name))

    found: dict[str, _Read] = {}
    experts: dict[str, dict[int, str]] = {}
    stored = [name for name in checkpoint.names() if not _TABLES.fullmatch(name)]
    tied = bool(config.get("tie_word_embeddings"))
    for name in stored:
        if tied and name == "lm_head.weight":
            if "model.embed_tokens.weight" in stored:
                continue
            found["model.embed_tokens.weight"] = _shape(checkpoint, name), reader(name)
        elif part := _EXPERT.fullmatch(name):
            stack = experts.setdefault(f"{part['stem']}.{part['leaf']}", {})
            stack[int(part["index"])] = name
        elif stack_name := _STACK.fullmatch(name):
            found |= _cut(checkpoint, name, stack_name["stem"], stack_name["leaf"])
        else:
            found[name] = _shape(checkpoint, name), reader(name)
    for name, parts in experts.items():
        found[name] = _stacked(checkpoint, name, parts)
    return found


def _cut(checkpoint: Checkpoint, name: str, stem: str, leaf: str) -> dict[str, _Read]:
    """Stacks as transformers 5 writes them: gate above up in one, down in another."""
    shape = _shape(checkpoint, name)
    if leaf == "down_proj":
        return {f"{stem}.down_proj.weight": (shape, lambda: _plain(checkpoint.tensor(name)))}
    half = shape[1] // 2

    def part(start: int) -> Callable[[], Tensor]:
        return lambda: _plain(checkpoint.tensor(name))[:, start : start + half]

    smaller = (shape[0], half, shape[2])
    return {
        f"{stem}.gate_proj.weight": (smaller, part(0)),
        f"{stem}.up_proj.weight": (smaller, part(half)),
    }


def _stacked(checkpoint: Checkpoint, name: str, parts: Mapping[int, str]) -> _Read:
    absent = sorted(set(range(max(parts) + 1)) - parts.keys())
    if absent:
        raise ConfigError(f"{name} lacks expert {', '.join(map(str, absent[:8]))}")
    ordered = [parts[index] for index in sorted(parts)]
    shape = (len(ordered), *_shape(checkpoint, ordered[0]))
    return shape, lambda: torch.stack([_plain(checkpoint.tensor(part)) for part in ordered])


def _shape(checkpoint: Checkpoint, name: str) -> tuple[int, ...]:
    return tuple(checkpoint.tensor(name).shape)


def _plain(value: Tensor | PackedWeight) -> Tensor:
    return value.dequantize() if isinstance(value, PackedWeight) else value


def _arranged(
    name: str, read: Callable[[], Tensor], config: Mapping[str, Any], family: Family
) -> Callable[[], Tensor]:
    """What converters do to a tensor on its way."""
    parsed = parse(name)
    role = parsed.role if parsed else ""
    if family.norm_plus_one and name.endswith("norm.weight"):
        return lambda: read().float() + 1
    if family.interleaved and role in ("attn_q", "attn_k"):
        heads = int(config["num_attention_heads"])
        if role == "attn_k":
            heads = int(config.get("num_key_value_heads") or heads)

        def permuted() -> Tensor:
            rows = read()
            return rows[adjacent_pair_order(rows.shape[0], heads)]

        return permuted
    return read


def attention_layers(names: Sequence[str]) -> tuple[int, ...]:
    """Layers with attention, by the names of a file's tensors."""
    found = {
        parsed.layer
        for name in names
        if (parsed := parse(name)) is not None
        and parsed.role in ("attn_v", "attn_qkv", "attn_kv_b")
        and parsed.layer is not None
    }
    return tuple(sorted(found))
