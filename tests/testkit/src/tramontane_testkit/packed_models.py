"""Models whose layers are packed by a format's own rules, beside the same ones in plain numbers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tramontane.loading.loader import LoadRequest, load_text
from tramontane_testkit.models import tiny_llama

Stored = Mapping[str, Tensor | np.ndarray[Any, Any]]

PartsOf = Callable[[str, tuple[int, int]], tuple[Stored, np.ndarray[Any, Any]]]
"""``parts_of(name, shape)``: what a checkpoint stores for a weight, by what follows the module's
name and a dot, and what that means, of the weight's shape."""


def packed_model(
    directory: Path,
    settings: Mapping[str, Any],
    parts_of: PartsOf,
    *,
    intermediate_size: int = 128,
    others: Stored | None = None,
) -> tuple[Path, Path]:
    """Two model directories below ``directory``.

    Args:
        settings: ``quantization_config`` of the packed one.
        parts_of: packs each weight of the layers.
        intermediate_size: rows of the widest matrices; the narrowest have 64.
        others: further tensors of the packed one.

    Returns:
        The packed model, and the one with the numbers that its parts mean.
    """
    path = tiny_llama(directory / "packed", hidden_size=64, intermediate_size=intermediate_size)
    packed = load_file(path / "model.safetensors")
    plain = dict(packed)
    for name in [n for n in plain if n.startswith("model.layers") and "norm" not in n]:
        rows, columns = packed.pop(name).shape
        parts, meaning = parts_of(name, (rows, columns))
        module = name.removesuffix(".weight")
        packed |= {f"{module}.{part}": _tensor(value) for part, value in parts.items()}
        plain[name] = torch.from_numpy(np.ascontiguousarray(meaning, dtype=np.float32))
    packed |= {name: _tensor(value) for name, value in (others or {}).items()}
    other = directory / "plain"
    other.mkdir()
    for file in path.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    save_file(plain, other / "model.safetensors")
    save_file(packed, path / "model.safetensors")
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = dict(settings)
    (path / "config.json").write_text(json.dumps(config))
    return path, other


def layer_modules(path: Path) -> dict[str, nn.Module]:
    """Every module of a model's layers by name, loaded in float32."""
    loaded = load_text(LoadRequest(model_id=str(path), dtype="f32")).model
    return {n: m for n, m in loaded.named_modules() if n.startswith("model.layers")}


class StoredTensors:
    """A checkpoint in memory, as far as a view of one asks for it.

    Args:
        tensors: by name.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors

    def names(self) -> list[str]:
        return list(self.tensors)

    def tensor(self, name: str) -> Tensor:
        return self.tensors[name]


def assert_multiplies(module: nn.Module, weight: Tensor, atol: float = 1e-4) -> None:
    """Hold ``module`` to the product with ``weight`` [out, in], as far as a kernel that rounds
    activations to 8 bits may be off it."""
    x = torch.randn(3, weight.shape[1])
    error = (module(x) - x @ weight.T).abs()
    rounding = x.abs().amax(-1, keepdim=True) / 254 * weight.abs().sum(-1)
    assert (error <= atol + rounding).all()


def _tensor(value: Tensor | np.ndarray[Any, Any]) -> Tensor:
    return value if isinstance(value, Tensor) else torch.from_numpy(value.copy())
