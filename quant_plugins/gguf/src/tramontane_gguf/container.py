"""The GGUF container: header, metadata, tensor table. Nothing is believed before it is checked.

Specification: ``docs/gguf.md`` of ggml. Layout, little-endian throughout::

    "GGUF"  u32 version  count num_tensors  count num_kv
    num_kv × (string key, u32 type, value)
    num_tensors × (string name, u32 num_dims, count dims[], u32 ggml type, u64 offset)
    padding to general.alignment, then tensor data

``count`` and the length of strings and arrays are u32 in version 1, u64 in versions 2 and 3.
Dims are fastest first; offsets count from the data section.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from attrs import frozen
from torch import Tensor

from tramontane.errors import CheckpointError
from tramontane_gguf.types import BY_NUMBER, GgmlType

MAGIC = b"GGUF"
VERSIONS = (1, 2, 3)
DEFAULT_ALIGNMENT = 32
MAX_DIMS = 4
MAX_ARRAY_DEPTH = 4
MAX_KEY_BYTES = 65_535

_BOOL, _STRING, _ARRAY = 7, 8, 9
_SCALARS: dict[int, str] = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i",
    6: "<f", _BOOL: "<B", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip


@frozen
class TensorInfo:
    """One row of the tensor table.

    Attributes:
        name: as stored in the file.
        shape: torch order, slowest axis first.
        type: how elements are stored.
        offset: bytes from the beginning of the file.
        nbytes: bytes of the data.
    """

    name: str
    shape: tuple[int, ...]
    type: GgmlType
    offset: int
    nbytes: int


@frozen(eq=False)
class Container:
    """One opened file.

    Attributes:
        path: for messages.
        version: 1, 2 or 3.
        metadata: every key; arrays of numbers are numpy arrays, other arrays lists.
        tensors: the tensor table, in file order.
        data: the whole file as a privately mapped byte tensor.
    """

    path: Path
    version: int
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    data: Tensor

    def bytes_of(self, info: TensorInfo) -> Tensor:
        """The tensor's bytes, [nbytes] uint8, a view of the mapping."""
        return self.data[info.offset : info.offset + info.nbytes]


def read(path: Path) -> Container:
    """Map a file and check its whole header.

    Raises:
        CheckpointError: not a GGUF file, a version or value type we do not know, or a count,
            length, dimension or offset that cannot be true; the message names file and field.
    """
    try:
        size = path.stat().st_size
        if size < 8:
            raise CheckpointError(f"{path}: {size} bytes are too few for a GGUF file")
        data = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
    except (OSError, RuntimeError) as cause:
        raise CheckpointError(f"{path} cannot be opened: {cause}") from cause
    return _Reader(path, data).read()


class _Reader:
    """Walks the header once. Every read is checked against the end of the file first."""

    def __init__(self, path: Path, data: Tensor) -> None:
        self.path = path
        self.data = data
        self.buffer = data.numpy().data
        self.at = 0
        self.count_format = "<Q"

    def fail(self, problem: str) -> NoReturn:
        raise CheckpointError(f"{self.path}: {problem}")

    @property
    def left(self) -> int:
        return len(self.buffer) - self.at

    def take(self, nbytes: int, what: str) -> memoryview:
        if nbytes > self.left:
            self.fail(
                f"{what} needs {nbytes} bytes at {self.at}, but the file ends at "
                f"{len(self.buffer)}; it is truncated or corrupt, fetch it again"
            )
        part = self.buffer[self.at : self.at + nbytes]
        self.at += nbytes
        return part

    def number(self, form: str, what: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form), what))[0]

    def count(self, what: str, least_bytes: int) -> int:
        """A count of things that take at least ``least_bytes`` each."""
        count: int = self.number(self.count_format, what)
        if count * least_bytes > self.left:
            self.fail(f"{what} is {count}, which cannot fit in the {self.left} bytes left")
        return count

    def string(self, what: str) -> str:
        nbytes: int = self.number(self.count_format, f"length of {what}")
        try:
            return str(self.take(nbytes, what), "utf-8")
        except UnicodeDecodeError as cause:
            raise CheckpointError(f"{self.path}: {what} is not valid UTF-8") from cause

    def read(self) -> Container:
        if self.take(4, "the magic") != MAGIC:
            self.fail(f"the file begins with {bytes(self.buffer[:4])!r}, not {MAGIC!r}: not GGUF")
        version: int = self.number("<I", "the version")
        if version not in VERSIONS:
            if version & 0xFFFF == 0 and version:
                self.fail("the file is big-endian; only little-endian GGUF can be read: convert it")
            self.fail(
                f"GGUF version {version} is unknown; known are {', '.join(map(str, VERSIONS))}"
            )
        self.count_format = "<I" if version == 1 else "<Q"
        word = struct.calcsize(self.count_format)
        num_tensors = self.number(self.count_format, "the number of tensors")
        num_keys = self.count("the number of metadata keys", word + 5)
        if num_tensors * (word + 16) > self.left:
            self.fail(f"{num_tensors} tensors cannot fit in the {self.left} bytes left")
        metadata: dict[str, Any] = {}
        for _ in range(num_keys):
            key = self.string("a metadata key")
            if not key or len(key) > MAX_KEY_BYTES:
                self.fail(f"a metadata key of {len(key)} characters is not allowed")
            if key in metadata:
                self.fail(f"metadata key {key!r} occurs twice")
            metadata[key] = self.value(self.number("<I", f"type of {key}"), key, 0)
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
            self.fail(f"general.alignment is {alignment!r}; it must be a power of two")
        rows = [self.tensor_row() for _ in range(num_tensors)]
        start = -(-self.at // alignment) * alignment
        return Container(
            self.path, version, metadata, self.placed(rows, start, alignment), self.data
        )

    def value(self, kind: int, what: str, depth: int) -> Any:
        if kind == _STRING:
            return self.string(what)
        if kind == _ARRAY:
            return self.array(what, depth + 1)
        if kind not in _SCALARS:
            self.fail(f"{what} has value type {kind}, which does not exist")
        number = self.number(_SCALARS[kind], what)
        if kind == _BOOL:
            if number > 1:
                self.fail(f"{what} is a bool with value {number}; it must be 0 or 1")
            return bool(number)
        return number

    def array(self, what: str, depth: int) -> Any:
        if depth > MAX_ARRAY_DEPTH:
            self.fail(f"{what} nests arrays more than {MAX_ARRAY_DEPTH} deep")
        kind: int = self.number("<I", f"element type of {what}")
        word = struct.calcsize(self.count_format)
        if kind == _STRING:
            return [self.string(what) for _ in range(self.count(f"length of {what}", word))]
        if kind == _ARRAY:
            length = self.count(f"length of {what}", word + 4)
            return [self.array(what, depth + 1) for _ in range(length)]
        if kind not in _SCALARS:
            self.fail(f"{what} is an array of value type {kind}, which does not exist")
        dtype = np.dtype(_SCALARS[kind])
        length = self.count(f"length of {what}", dtype.itemsize)
        values = np.frombuffer(self.take(length * dtype.itemsize, what), dtype=dtype)
        if kind == _BOOL:
            if (values > 1).any():
                self.fail(f"{what} holds a bool that is neither 0 nor 1")
            return values.astype(np.bool_)
        # A copy, so that metadata does not keep the file mapped.
        return values.copy()

    def tensor_row(self) -> tuple[str, tuple[int, ...], GgmlType, int]:
        """Name, torch shape, type and relative offset of the next tensor."""
        name = self.string("a tensor name")
        if not name:
            self.fail("a tensor has no name")
        num_dims: int = self.number("<I", f"number of dimensions of {name}")
        if num_dims > MAX_DIMS:
            self.fail(f"tensor {name} has {num_dims} dimensions; at most {MAX_DIMS} are allowed")
        dims = [self.number(self.count_format, f"dimensions of {name}") for _ in range(num_dims)]
        number: int = self.number("<I", f"type of {name}")
        offset: int = self.number("<Q", f"offset of {name}")
        if 0 in dims:
            self.fail(f"tensor {name} has an empty dimension: {dims}")
        kind = BY_NUMBER.get(number)
        if kind is None:
            known = ", ".join(t.name for t in BY_NUMBER.values())
            self.fail(f"tensor {name} has ggml type {number}, which is unknown; known are {known}")
        row = dims[0] if dims else 1
        if row % kind.block_size:
            self.fail(
                f"tensor {name} has rows of {row} elements, which are not whole {kind.name} "
                f"blocks of {kind.block_size}"
            )
        return name, tuple(reversed(dims)), kind, offset

    def placed(
        self, rows: list[tuple[str, tuple[int, ...], GgmlType, int]], start: int, alignment: int
    ) -> dict[str, TensorInfo]:
        """The tensor table with absolute offsets, every one inside the file and apart."""
        tensors: dict[str, TensorInfo] = {}
        for name, shape, kind, offset in rows:
            if name in tensors:
                self.fail(f"tensor {name!r} occurs twice")
            if offset % alignment:
                self.fail(f"tensor {name} begins at {offset}, not a multiple of {alignment}")
            nbytes = prod(shape) // kind.block_size * kind.type_size
            if start + offset + nbytes > len(self.buffer):
                self.fail(
                    f"tensor {name} ends at {start + offset + nbytes}, but the file at "
                    f"{len(self.buffer)}; it is truncated or corrupt, fetch it again"
                )
            tensors[name] = TensorInfo(name, shape, kind, start + offset, nbytes)
        end, before = start, "the header"
        for info in sorted(tensors.values(), key=lambda t: t.offset):
            if info.offset < end:
                self.fail(f"tensor {info.name} overlaps {before}")
            end, before = info.offset + info.nbytes, f"tensor {info.name}"
        return tensors
