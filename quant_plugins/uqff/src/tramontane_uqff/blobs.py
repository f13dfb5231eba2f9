"""Generation 0: each layer is one blob of bytes under a number.

Little-endian throughout: ``u32 version, u8 kind``, then by kind (`_READERS`). A tensor in a blob
is ``u32 num_bytes, u32 dtype, u32 num_dims, u32 dims[], data``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from tramontane.errors import CheckpointError
from tramontane.loading.tensors import SafetensorsCheckpoint
from tramontane_uqff.layout import DTYPES, FLOATS, MAX_DIMS, NEWEST_GEN0, TENSORS, Kind
from tramontane_uqff.parts import StoredWeight

GEN0_KINDS = (Kind.GGUF, Kind.UNQUANT, Kind.HQQ, Kind.FP8, Kind.AFQ)


class Blobs:
    """The shards of one model, with the names of its layers. A `Source` of
    `tramontane_uqff.checkpoint`.

    Args:
        shards: opened files whose tensors are named by numbers.
        order: gives the names of the modules for the count of layers.

    Raises:
        CheckpointError: numbers that are missing or occur twice, or a blob that is damaged.
    """

    def __init__(
        self,
        shards: Sequence[tuple[Path, SafetensorsCheckpoint]],
        order: Callable[[int], Sequence[str]],
    ) -> None:
        found: dict[int, tuple[Path, SafetensorsCheckpoint, str]] = {}
        for path, shard in shards:
            for name in shard.names():
                number = int(name)
                if number in found:
                    raise CheckpointError(
                        f"layer {number} is in {found[number][0]} and in {path}; the shards do "
                        f"not belong together"
                    )
                found[number] = path, shard, name
        absent = next((n for n in range(len(found)) if n not in found), None)
        if absent is not None:
            raise CheckpointError(
                f"{shards[0][0]}: layer {absent} of {max(found) + 1} is in none of the "
                f"{len(shards)} files; give all shards"
            )
        self._layers: dict[str, StoredWeight] = {}
        self._biases: dict[str, Tensor] = {}
        self._raw: dict[str, tuple[SafetensorsCheckpoint, str]] = {}
        for number, key in enumerate(order(len(found))):
            path, shard, name = found[number]
            weight, bias = read_blob(shard.tensor(name), f"{path}: layer {number} ({key})")
            self._layers[f"{key}.weight"] = weight
            self._raw[f"{key}.weight"] = shard, name
            if bias is not None:
                self._biases[f"{key}.bias"] = bias
        self.nbytes = sum(shard.nbytes for _, shard in shards)

    def names(self) -> list[str]:
        return [*self._layers, *self._biases]

    def stored(self, name: str) -> StoredWeight | Tensor:
        """The parts of a weight, or a bias."""
        return self._layers[name] if name in self._layers else self._biases[name]

    def release(self, name: str) -> None:
        """Let the pages of a layer leave memory."""
        if name in self._raw:
            shard, raw = self._raw[name]
            shard.release(raw)


def read_blob(data: Tensor, where: str) -> tuple[StoredWeight, Tensor | None]:
    """The weight and the bias of one blob, [n] uint8.

    Raises:
        CheckpointError: damaged, or of a version or kind that is not known.
    """
    if data.dtype is not torch.uint8 or data.dim() != 1:
        raise CheckpointError(f"{where} is not a list of bytes")
    cursor = _Cursor(data, where)
    version = cursor.number("<I", "the version")
    major, minor, patch = version >> 16, version >> 8 & 0xFF, version & 0xFF
    if major != NEWEST_GEN0[0] or minor > NEWEST_GEN0[1]:
        raise CheckpointError(
            f"{where} is UQFF {major}.{minor}.{patch}; of this generation versions up to "
            f"{NEWEST_GEN0[0]}.{NEWEST_GEN0[1]} can be read"
        )
    number = cursor.number("<B", "the kind")
    kind = next((k for k in GEN0_KINDS if k == number), None)
    if kind is None:
        known = ", ".join(f"{k.value} {k.name}" for k in GEN0_KINDS)
        cursor.fail(f"kind {number} is unknown; known are {known}")
    parts, has_bias = _READERS[kind](cursor)
    for part, dtypes in TENSORS[kind].items():
        if parts[part].dtype not in dtypes:
            cursor.fail(f"{part or 'the weight'} of a weight in {kind.name} is {parts[part].dtype}")
    bias = cursor.tensor("the bias") if has_bias else None
    if bias is not None and bias.dtype not in FLOATS:
        cursor.fail(f"the bias is stored as {bias.dtype}")
    cursor.end()
    return StoredWeight(where, kind, parts), bias


class _Cursor:
    """Walks a blob. Nothing is taken before it is known to lie inside."""

    def __init__(self, data: Tensor, where: str) -> None:
        self._data = data
        self._where = where
        self._at = 0

    def fail(self, problem: str) -> NoReturn:
        raise CheckpointError(f"{self._where}: {problem}")

    def take(self, nbytes: int, what: str) -> Tensor:
        left = self._data.numel() - self._at
        if nbytes > left:
            self.fail(f"{what} needs {nbytes} bytes, but {left} are left; the file is damaged")
        part = self._data[self._at : self._at + nbytes]
        self._at += nbytes
        return part

    def number(self, form: str, what: str) -> Any:
        return struct.unpack(form, bytes(self.take(struct.calcsize(form), what).tolist()))[0]

    def flag(self, what: str) -> bool:
        value = self.number("<B", what)
        if value > 1:
            self.fail(f"{what} is {value}; it must be 0 or 1")
        return bool(value)

    def shape(self, what: str) -> tuple[int, ...]:
        count = self.number("<I", f"the number of dimensions of {what}")
        if count > MAX_DIMS:
            self.fail(f"{what} has {count} dimensions; at most {MAX_DIMS} are allowed")
        return tuple(self.number("<I", f"dimensions of {what}") for _ in range(count))

    def tensor(self, what: str) -> Tensor:
        nbytes = self.number("<I", f"the size of {what}")
        code = self.number("<I", f"the dtype of {what}")
        dtype = DTYPES.get(code)
        if dtype is None:
            self.fail(f"{what} has dtype code {code}; known are {', '.join(map(str, DTYPES))}")
        shape = self.shape(what)
        if prod(shape) * dtype.itemsize != nbytes:
            self.fail(f"{what} of shape {list(shape)} and {dtype} cannot take {nbytes} bytes")
        data = self.take(nbytes, what)
        if not nbytes:
            return torch.empty(shape, dtype=dtype)
        if data.data_ptr() % dtype.itemsize or data.storage_offset() % dtype.itemsize:
            data = data.clone()
        return data.view(dtype).view(shape)

    def end(self) -> None:
        left = self._data.numel() - self._at
        if left:
            self.fail(f"{left} bytes are left over; the file is damaged")


def _gguf(cursor: _Cursor) -> tuple[dict[str, Any], bool]:
    nbytes = cursor.number("<I", "the size of the weight")
    has_bias = cursor.flag("has_bias")
    dtype = cursor.number("<I", "the ggml type")
    shape = cursor.shape("the weight")
    return {"": cursor.take(nbytes, "the weight"), "dtype": dtype, "shape": shape}, has_bias


def _unquant(cursor: _Cursor) -> tuple[dict[str, Any], bool]:
    has_bias = cursor.flag("has_bias")
    return {"": cursor.tensor("the weight")}, has_bias


def _hqq(cursor: _Cursor) -> tuple[dict[str, Any], bool]:
    has_bias = cursor.flag("has_bias")
    parts: dict[str, Any] = {
        "": cursor.tensor("the weight"),
        "scales": cursor.tensor("scales"),
        "zeros": cursor.tensor("zeros"),
        "shape": cursor.shape("the weight"),
    }
    forms = (
        ("bits", "<B"), ("group_size", "<I"), ("axis", "<B"), ("optimization_steps", "<I"),
        ("round_zeros", "<B"), ("channel_wise", "<B"),
    )  # fmt: skip
    return parts | {name: cursor.number(form, name) for name, form in forms}, has_bias


def _fp8(cursor: _Cursor) -> tuple[dict[str, Any], bool]:
    has_bias = cursor.flag("has_bias")
    parts: dict[str, Any] = {"": cursor.tensor("the weight")}
    forms = (
        ("dequant_w_scale", "<f"), ("dequant_x_scale", "<f"), ("quant_scale", "<f"),
        ("dtype", "<I"),
    )  # fmt: skip
    return parts | {name: cursor.number(form, name) for name, form in forms}, has_bias


def _afq(cursor: _Cursor) -> tuple[dict[str, Any], bool]:
    has_bias = cursor.flag("has_bias")
    tensors = {"": "the weight", "scales": "scales", "biases": "biases"}
    parts: dict[str, Any] = {name: cursor.tensor(what) for name, what in tensors.items()}
    return parts | {name: cursor.number("<B", name) for name in ("bits", "group_size")}, has_bias


_READERS: Mapping[Kind, Callable[[_Cursor], tuple[dict[str, Any], bool]]] = {
    Kind.GGUF: _gguf,
    Kind.UNQUANT: _unquant,
    Kind.HQQ: _hqq,
    Kind.FP8: _fp8,
    Kind.AFQ: _afq,
}
