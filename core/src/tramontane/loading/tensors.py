"""Safetensors checkpoints.

The format (https://github.com/huggingface/safetensors, "Format"): 8 bytes, the length N of the
header as little-endian u64; N bytes of JSON, name → dtype, shape and data offsets; then the data,
without gaps. Every header is checked in full before the first tensor is handed out, so that a
damaged file is refused with its name and the field at fault.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from math import prod
from pathlib import Path
from typing import Any

import torch
from attrs import frozen
from torch import Tensor

from tramontane.errors import CheckpointError
from tramontane.loading.mapping import MappedFile
from tramontane.protocols.checkpoint import EmbeddedTokenizer

MAX_DIMS = 64
"""Most dimensions a tensor of torch may have in all operations."""

MAX_HEADER_BYTES = 100_000_000
"""Longest header the reference implementation accepts."""

DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": torch.float8_e8m0fnu,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "F32": torch.float32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
}


@frozen
class _Entry:
    """Where one tensor lies; offsets are those of the file."""

    file: MappedFile
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


class SafetensorsCheckpoint:
    """One model's safetensors files, mapped. A `tramontane.protocols.Checkpoint`."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._entries: dict[str, _Entry] = {}
        for path in files:
            for name, entry in _read_header(path).items():
                other = self._entries.setdefault(name, entry)
                if other is not entry:
                    raise CheckpointError(
                        f"tensor {name!r} is in {other.file.path.name} and in {path.name}; "
                        f"the shards do not belong together"
                    )

    def config(self) -> None:
        return None

    def tokenizer(self) -> EmbeddedTokenizer | None:
        return None

    def names(self) -> Sequence[str]:
        return list(self._entries)

    def tensor(self, name: str) -> Tensor:
        entry = self._entry(name)
        return entry.file.tensor(entry.dtype, entry.shape, entry.start)

    def release(self, name: str) -> None:
        """Let go of the pages of a tensor that has been copied elsewhere."""
        entry = self._entry(name)
        entry.file.release(entry.start, entry.stop)

    @property
    def nbytes(self) -> int:
        return sum(e.stop - e.start for e in self._entries.values())

    def close(self) -> None:
        self._entries = {}

    def _entry(self, name: str) -> _Entry:
        try:
            return self._entries[name]
        except KeyError:
            near = get_close_matches(name, self._entries, n=1)
            hint = f"; the nearest is {near[0]!r}" if near else ""
            raise CheckpointError(f"the checkpoint has no tensor {name!r}{hint}") from None


class SafetensorsFormat:
    """Opens ``*.safetensors``."""

    def open(self, files: Sequence[Path]) -> SafetensorsCheckpoint:
        return SafetensorsCheckpoint(files)


def _read_header(path: Path) -> dict[str, _Entry]:
    """Every tensor of one file.

    Raises:
        CheckpointError: the file breaks the format; names the file and the field.
    """
    file = MappedFile(path)
    if file.size < 8:
        raise CheckpointError(f"{path} has {file.size} bytes and is no safetensors file")
    length = int.from_bytes(file.read(0, 8), "little")
    begin = 8 + length
    if length > MAX_HEADER_BYTES or begin > file.size:
        raise CheckpointError(
            f"{path} states a header of {length} bytes in a file of {file.size}; it is no "
            f"safetensors file, or it is truncated: fetch it again"
        )
    try:
        header = json.loads(file.read(8, begin), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as cause:
        raise CheckpointError(f"{path}: the header is not valid JSON: {cause}") from cause
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: the header is no JSON object")
    header.pop("__metadata__", None)
    entries = {name: _read_entry(file, begin, name, info) for name, info in header.items()}
    _check_layout(file, begin, entries)
    return entries


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key occurs twice")
    return result


def _read_entry(file: MappedFile, begin: int, name: str, info: Any) -> _Entry:
    where = f"{file.path}: tensor {name!r}"
    if not isinstance(info, Mapping) or not {"dtype", "shape", "data_offsets"} <= info.keys():
        raise CheckpointError(f"{where} lacks dtype, shape or data_offsets")
    dtype = DTYPES.get(info["dtype"]) if isinstance(info["dtype"], str) else None
    if dtype is None:
        raise CheckpointError(
            f"{where} has unknown dtype {info['dtype']!r}; known: {', '.join(DTYPES)}"
        )
    shape, offsets = info["shape"], info["data_offsets"]
    if not _are_sizes(shape) or len(shape) > MAX_DIMS:
        raise CheckpointError(
            f"{where} has shape {str(shape)[:80]}; sizes must be counts, at most {MAX_DIMS} of them"
        )
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(f"{where} has data_offsets {offsets!r}; they must be [begin, end]")
    start, stop = begin + offsets[0], begin + offsets[1]
    if stop > file.size:
        raise CheckpointError(
            f"{where} ends at byte {stop} of a file of {file.size} bytes; the file is truncated: "
            f"fetch it again"
        )
    needed = prod(shape) * dtype.itemsize
    if stop - start != needed:
        raise CheckpointError(
            f"{where} of shape {shape} and dtype {info['dtype']} needs {needed} bytes, "
            f"but its data_offsets hold {stop - start}"
        )
    if not needed and prod(size or 1 for size in shape) >= 2**63:
        raise CheckpointError(f"{where} is empty, but its shape {shape} is beyond 64 bits")
    return _Entry(file, dtype, tuple(shape), start, stop)


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 2**63 for v in value)


def _check_layout(file: MappedFile, begin: int, entries: Mapping[str, _Entry]) -> None:
    """Data follow one another without overlap or gap, and end with the file."""
    end, last = begin, "the header"
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start < end:
            raise CheckpointError(f"{file.path}: tensor {name!r} overlaps {last!r}")
        if entry.start > end:
            raise CheckpointError(
                f"{file.path}: {entry.start - end} bytes before tensor {name!r} belong to none"
            )
        end, last = entry.stop, name
    if end != file.size:
        raise CheckpointError(f"{file.path}: the last {file.size - end} bytes belong to no tensor")
