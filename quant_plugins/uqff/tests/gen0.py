"""A writer of generation 0, as its layout is published; only tests make such files."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tramontane.hooks import plugin_manager

CODES = {torch.uint8: 0, torch.uint32: 1, torch.float16: 4, torch.bfloat16: 5, torch.float32: 6}


def tensor(value: Tensor) -> bytes:
    data = value.contiguous().view(torch.uint8).numpy().tobytes()
    head = struct.pack(
        f"<III{value.dim()}I", len(data), CODES[value.dtype], value.dim(), *value.shape
    )
    return head + data


def gguf_blob(parts: Mapping[str, Any], bias: Tensor | None = None, version: int = 0x200) -> bytes:
    data, shape = parts["data"].numpy().tobytes(), parts["shape"]
    head = struct.pack("<IBIBI", version, 0, len(data), bias is not None, parts["dtype"])
    blob = head + struct.pack(f"<I{len(shape)}I", len(shape), *shape) + data
    return blob if bias is None else blob + tensor(bias)


def plain_blob(weight: Tensor, bias: Tensor | None = None) -> bytes:
    blob = struct.pack("<IBB", 0x200, 1, bias is not None) + tensor(weight)
    return blob if bias is None else blob + tensor(bias)


def save_blobs(path: Path, blobs: Mapping[int, bytes]) -> None:
    tensors = {str(n): torch.frombuffer(bytearray(b), dtype=torch.uint8) for n, b in blobs.items()}
    save_file(tensors, path)


def convert(model: Path, keys: Sequence[str], *, shards: int = 1) -> dict[str, Tensor]:
    """Make a directory one of generation 0: layers ``keys`` as Q8_0 in ``q8_0-*.uqff``, the rest
    in the residual. A key of a stack is made of the experts' tensors.

    Returns:
        What the layers hold, by key.
    """
    quantizer = plugin_manager().resolve(plugin_manager().get("quantizers", "gguf"))()
    tensors = load_file(model / "model.safetensors")
    blobs, values = [], {}
    for key in keys:
        weight = _taken(tensors, key)
        packed = quantizer.quantize(weight, "q8_0")
        bias = tensors.pop(f"{key}.bias", None)
        blobs.append(gguf_blob(quantizer.serialize(packed), bias))
        values[key] = packed.dequantize()
    size = -(-len(blobs) // shards)
    for number in range(shards):
        chosen = range(number * size, min((number + 1) * size, len(blobs)))
        save_blobs(model / f"q8_0-{number}.uqff", {n: blobs[n] for n in chosen})
    save_file(tensors, model / "residual.safetensors")
    (model / "model.safetensors").unlink()
    return values


def _taken(tensors: dict[str, Tensor], key: str) -> Tensor:
    if f"{key}.weight" in tensors:
        return tensors.pop(f"{key}.weight")
    if key == "lm_head":
        return tensors["model.embed_tokens.weight"]
    stack, _, name = key.rpartition(".")
    experts = [n for n in tensors if n.startswith(f"{stack}.") and n.endswith(f".{name}.weight")]
    numbered = sorted(experts, key=lambda n: int(n.split(".")[-3]))
    return torch.stack([tensors.pop(n) for n in numbered])


def put_back(model: Path, values: Mapping[str, Tensor]) -> None:
    """Give a checkpoint the values that its layers have in the other form."""
    tensors = load_file(model / "model.safetensors")
    for key, value in values.items():
        if f"{key}.weight" in tensors:
            tensors[f"{key}.weight"] = value.contiguous()
        elif key != "lm_head":
            stack, _, name = key.rpartition(".")
            for index, expert in enumerate(value):
                tensors[f"{stack}.{index}.{name}.weight"] = expert.contiguous()
    save_file(tensors, model / "model.safetensors")
