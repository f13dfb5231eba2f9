"""PyTorch ``.bin`` / ``.pth`` checkpoints: pickled state dictionaries, never executed."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tramontane.errors import CheckpointError
from tramontane.protocols.checkpoint import EmbeddedTokenizer

ZIP_MAGIC = b"PK\x03\x04"


class TorchBinCheckpoint:
    """One model's state dictionaries. A `tramontane.protocols.Checkpoint`.

    Files in the zip layout (torch 1.6 and later) are mapped; older ones are read.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._tensors: dict[str, Tensor] = {}
        for path in files:
            for name, tensor in _load(path).items():
                if name in self._tensors:
                    raise CheckpointError(
                        f"tensor {name!r} is in {path.name} and in an earlier shard; "
                        f"the shards do not belong together"
                    )
                self._tensors[name] = tensor

    def config(self) -> None:
        return None

    def tokenizer(self) -> EmbeddedTokenizer | None:
        return None

    def names(self) -> Sequence[str]:
        return list(self._tensors)

    def tensor(self, name: str) -> Tensor:
        try:
            return self._tensors[name]
        except KeyError:
            raise CheckpointError(f"the checkpoint has no tensor {name!r}") from None

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self._tensors.values())

    def close(self) -> None:
        self._tensors = {}


class TorchBinFormat:
    """Opens ``*.bin``, ``*.pth`` and ``*.pt``."""

    def open(self, files: Sequence[Path]) -> TorchBinCheckpoint:
        return TorchBinCheckpoint(files)


def _load(path: Path) -> dict[str, Tensor]:
    try:
        with path.open("rb") as file:
            zipped = file.read(4) == ZIP_MAGIC
        content: Any = torch.load(path, map_location="cpu", mmap=zipped, weights_only=True)
    except pickle.UnpicklingError as cause:
        raise CheckpointError(
            f"{path} is damaged, or holds more than tensors and would run code to be read; it is "
            f"refused. Use safetensors files of this model: {cause}"
        ) from cause
    # What a damaged archive raises depends on which byte is wrong; none of it is ours.
    except Exception as cause:
        raise CheckpointError(
            f"{path} cannot be read as a PyTorch checkpoint: {type(cause).__name__}: {cause}"
        ) from cause
    if not isinstance(content, dict) or not all(
        isinstance(k, str) and isinstance(v, Tensor) and v.layout is torch.strided
        for k, v in content.items()
    ):
        raise CheckpointError(f"{path} holds no plain mapping from names to dense tensors")
    return content
