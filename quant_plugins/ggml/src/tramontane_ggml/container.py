"""The container: magic, hyperparameters, vocabulary, tensors. Nothing is believed unchecked.

Layout, little-endian throughout::

    u32 magic, [u32 version], 7 x u32 hyperparameters
    vocabulary: u32 length, bytes, [f32 score] each
    tensors until the end: u32 num_dims, u32 name_length, u32 type, u32 dims[], name,
                           [padding to 32 bytes], data

The version is absent for ``ggml``, and so are scores; only ``ggjt`` has padding. Dims are fastest
first.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import NoReturn

import torch
from attrs import frozen
from torch import Tensor

from tramontane.errors import CheckpointError
from tramontane.loading.mapping import MappedFile
from tramontane_ggml.blocks import BlockType, block_types

GGML, GGMF, GGJT = 0x67676D6C, 0x67676D66, 0x67676A74
VERSIONS: Mapping[int, tuple[str, tuple[int, ...]]] = {
    GGML: ("ggml", (0,)), GGMF: ("ggmf", (1,)), GGJT: ("ggjt", (1, 2, 3)),
}  # fmt: skip
OTHERS = {
    0x67676C61: "a LoRA adapter (ggla)", 0x6767736E: "a saved session (ggsn)",
    0x46554747: "a GGUF file: open it with Which.GGUF",
}  # fmt: skip

ALIGNMENT = 32
MAX_DIMS = 2
MAX_NAME_BYTES = 256
HYPERPARAMETERS = ("n_vocab", "n_embd", "n_mult", "n_head", "n_layer", "n_rot", "ftype")


@frozen
class TensorInfo:
    """Where one tensor lies.

    Attributes:
        name: as stored.
        shape: torch order.
        type: how its blocks look in this file.
        offset, nbytes: its data.
    """

    name: str
    shape: tuple[int, ...]
    type: BlockType
    offset: int
    nbytes: int


@frozen
class Container:
    """One opened file.

    Attributes:
        file: mapped.
        name: ``"ggjt 3"`` and the like.
        values: hyperparameters by name.
        pieces: raw tokens.
        scores: one a token; empty where the file has none.
        tensors: by name.
    """

    file: MappedFile
    name: str
    values: Mapping[str, int]
    pieces: list[bytes]
    scores: list[float]
    tensors: Mapping[str, TensorInfo]

    def data(self, info: TensorInfo) -> Tensor:
        """The bytes of a tensor, [n] uint8, a view of the file."""
        return self.file.tensor(torch.uint8, (info.nbytes,), info.offset)


def read(path: Path) -> Container:
    """Map a file and check everything but its numbers.

    Raises:
        CheckpointError: another kind of file, an unknown version, or a count, length or size that
            cannot be true; names file and field.
    """
    return _Reader(MappedFile(path)).read()


class _Reader:
    """Walks the file once."""

    def __init__(self, file: MappedFile) -> None:
        self._file = file
        self._at = 0

    def fail(self, problem: str) -> NoReturn:
        raise CheckpointError(f"{self._file.path}: {problem}")

    @property
    def left(self) -> int:
        return self._file.size - self._at

    def take(self, nbytes: int, what: str) -> bytes:
        if nbytes > self.left:
            self.fail(
                f"{what} needs {nbytes} bytes at {self._at}, but the file ends at "
                f"{self._file.size}; it is truncated or damaged: fetch it again"
            )
        self._at += nbytes
        return self._file.read(self._at - nbytes, self._at)

    def number(self, what: str) -> int:
        value: int = struct.unpack("<I", self.take(4, what))[0]
        return value

    def read(self) -> Container:
        magic = self.number("the magic")
        if magic not in VERSIONS:
            known = ", ".join(name for name, _ in VERSIONS.values())
            self.fail(
                f"this is {OTHERS[magic]}, not a model"
                if magic in OTHERS
                else f"the file begins with {magic:#010x} and is none of {known}"
            )
        name, versions = VERSIONS[magic]
        version = 0 if magic == GGML else self.number("the version")
        if version not in versions:
            self.fail(
                f"{name} version {version} is unknown; known are {', '.join(map(str, versions))}"
            )
        values = {key: self.number(key) for key in HYPERPARAMETERS}
        pieces, scores = self._vocabulary(values["n_vocab"], scored=magic != GGML)
        types = block_types(version if magic == GGJT else 1)
        tensors: dict[str, TensorInfo] = {}
        while self.left:
            info = self._tensor(types, aligned=magic == GGJT)
            if info.name in tensors:
                self.fail(f"tensor {info.name!r} occurs twice")
            tensors[info.name] = info
        return Container(self._file, f"{name} {version}", values, pieces, scores, tensors)

    def _vocabulary(self, count: int, *, scored: bool) -> tuple[list[bytes], list[float]]:
        if count * (8 if scored else 4) > self.left:
            self.fail(f"n_vocab is {count}, which cannot fit in the {self.left} bytes left")
        pieces: list[bytes] = []
        scores: list[float] = []
        for index in range(count):
            length = self.number(f"the length of token {index}")
            pieces.append(self.take(length, f"token {index}"))
            if scored:
                scores.append(struct.unpack("<f", self.take(4, f"the score of token {index}"))[0])
        return pieces, scores

    def _tensor(self, types: Mapping[int, BlockType], *, aligned: bool) -> TensorInfo:
        num_dims = self.number("the number of dimensions")
        length = self.number("the length of a tensor's name")
        number = self.number("the type of a tensor")
        if not 1 <= num_dims <= MAX_DIMS or not 1 <= length <= MAX_NAME_BYTES:
            self.fail(
                f"at byte {self._at - 12} a tensor has {num_dims} dimensions and a name of "
                f"{length} bytes; the file is damaged"
            )
        dims = [self.number("dimensions") for _ in range(num_dims)]
        raw = self.take(length, "the name of a tensor")
        try:
            name = raw.decode()
        except UnicodeDecodeError as cause:
            raise CheckpointError(f"{self._file.path}: a tensor is named {raw!r}") from cause
        kind = types.get(number)
        if kind is None:
            known = ", ".join(f"{t.number} {t.name}" for t in types.values())
            self.fail(f"tensor {name!r} has type {number}; files of this version have {known}")
        if not all(dims) or dims[0] % kind.size:
            self.fail(
                f"tensor {name!r} of dimensions {dims} has no rows of whole {kind.name} blocks "
                f"of {kind.size}"
            )
        if aligned:
            self._at += -self._at % ALIGNMENT
        nbytes = prod(dims) // kind.size * kind.nbytes
        if nbytes > self.left:
            self.fail(
                f"tensor {name!r} needs {nbytes} bytes at {self._at}, but the file ends at "
                f"{self._file.size}; it is truncated or damaged: fetch it again"
            )
        info = TensorInfo(name, tuple(reversed(dims)), kind, self._at, nbytes)
        self._at += nbytes
        return info
