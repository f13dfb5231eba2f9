"""Importance matrices: how much each input column of each weight matters.

Numbers are mean squared activations, up to a factor that quantizers do not see. Four kinds of file
are read: llama.cpp's old one and its GGUF one, and both generations of mistral.rs's ``.cimatrix``;
the second and the last are written. In memory names are those of the file, without ``.weight``:
``blk.0.attn_q`` or ``model.layers.0.self_attn.q_proj``; `for_modules` finds those of a model.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from attrs import field, frozen
from torch import Tensor

from tramontane.errors import CheckpointError
from tramontane.hooks import PluginManager

CIMATRIX = ".cimatrix"
_NAME_LIMIT = 65_535

_ROLES = {
    "q_proj": ("attn_q", "attn_qkv"),
    "k_proj": ("attn_k", "attn_qkv"),
    "v_proj": ("attn_v", "attn_qkv"),
    "qkv_proj": ("attn_qkv", "attn_q"),
    "o_proj": ("attn_output",),
    "out_proj": ("attn_output",),
    "dense": ("attn_output",),
    "q_a_proj": ("attn_q_a",),
    "q_b_proj": ("attn_q_b",),
    "kv_a_proj_with_mqa": ("attn_kv_a_mqa",),
    "kv_b_proj": ("attn_kv_b", "attn_v_b"),
    "mamba.in_proj": ("ssm_in",),
    "mamba.out_proj": ("ssm_out",),
    "gate_proj": ("ffn_gate", "ffn_up"),
    "w1": ("ffn_gate",),
    "up_proj": ("ffn_up",),
    "w3": ("ffn_up",),
    "gate_up_proj": ("ffn_up", "ffn_gate"),
    "fc1": ("ffn_up",),
    "c_fc": ("ffn_up",),
    "down_proj": ("ffn_down",),
    "w2": ("ffn_down",),
    "fc2": ("ffn_down",),
    "c_proj": ("ffn_down",),
}
"""End of a module's name → roles of GGUF that have its statistics, the best first. Modules
that read the same input share them, whichever of them the file names."""

_LAYER = re.compile(r"(?:.*\.)?layers\.(?P<layer>\d+)\.(?P<rest>.+)")


@frozen(kw_only=True)
class Imatrix:
    """The content of one file.

    Attributes:
        values: name → importances, float32: [in], or [experts, in] for a stack.
        positions: of a first-generation ``.cimatrix``, which has no names: place in mistral.rs's
            list of layers → importances; empty for all others.
        datasets: texts they were collected from, where the file says.
        chunks: how many pieces of text, or 0.
    """

    values: Mapping[str, Tensor]
    positions: Mapping[int, Tensor] = field(factory=dict)
    datasets: tuple[str, ...] = ()
    chunks: int = 0

    def by_gguf_name(self, *, every: bool = False) -> dict[str, Tensor]:
        """The same under the names of a GGUF file's tensors.

        Args:
            every: under each name that a file may have for a tensor with these statistics, for
                writing a model; otherwise under the best one, for writing an importance matrix.

        Raises:
            CheckpointError: the file has places instead of names.
        """
        if self.positions:
            raise CheckpointError(
                "a .cimatrix of mistral.rs 0.7 or older has no names, so that it serves loading "
                "only: collect one anew, or give llama.cpp's"
            )
        names = {name: gguf_names(name) or [name] for name in self.values}
        found = {candidates[0]: self.values[name] for name, candidates in names.items()}
        if every:
            for name, candidates in names.items():
                for candidate in candidates[1:]:
                    found.setdefault(candidate, self.values[name])
        return found


def for_modules(
    given: Imatrix, modules: Iterable[tuple[str, tuple[int, ...]]]
) -> dict[str, Tensor]:
    """Importances of a model's own modules.

    Args:
        given: what a file held.
        modules: name and weight shape of every module that may be packed.
    """
    found: dict[str, Tensor] = {}
    names = list(modules)
    for name, shape in names:
        for candidate in (name, f"model.{name}", *gguf_names(name)):
            if candidate in given.values:
                found[name] = _shaped(given.values[candidate], shape)
                break
    if given.positions:
        order = [name for name, _ in sorted(names, key=lambda item: _place(item[0]))]
        shapes = dict(names)
        for index, values in given.positions.items():
            if index >= len(order):
                raise CheckpointError(
                    f"the importance matrix has an entry for layer {index} of mistral.rs's list, "
                    f"which has {len(order)} layers for this model: it belongs to another"
                )
            found[order[index]] = _shaped(values, shapes[order[index]])
    return found


def gguf_names(module: str) -> list[str]:
    """Names that a GGUF tensor with the statistics of ``module`` may have, the best first."""
    if module.rpartition(".")[2] == "lm_head":
        return ["output"]
    located = _LAYER.fullmatch(module)
    if located is None:
        return []
    rest = located["rest"]
    suffixes = [""]
    if re.search(r"(^|\.)shared_mlp\.", rest):
        suffixes = ["_shexp", ""]  # without experts beside it, it is the MLP
    elif re.search(r"(^|\.)shared_experts?\.", rest):
        suffixes = ["_shexp"]
    elif re.search(r"(^|\.)experts\.", rest):
        suffixes = ["_exps"]
    roles = _ROLES.get(rest) or _ROLES.get(rest.rpartition(".")[2], ())
    return [f"blk.{located['layer']}.{role}{suffix}" for role in roles for suffix in suffixes]


def _shaped(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Flat importances of a stack as one row an expert."""
    if len(shape) == 3 and values.dim() == 1 and values.numel() == shape[0] * shape[2]:
        return values.view(shape[0], shape[2])
    return values


def _place(name: str) -> tuple[int, int, int, str]:
    """Where mistral.rs 0.7 lists a module: the head first, then layer by layer."""
    located = _LAYER.fullmatch(name)
    if located is None:
        return (-1, 0, 0, name)
    order = (
        "q_proj", "q_a_proj", "q_b_proj", "qkv_proj", "k_proj", "v_proj", "kv_a_proj_with_mqa",
        "kv_b_proj", "o_proj", "dense", "gate_proj", "gate_up_proj", "fc1", "c_fc", "up_proj",
        "down_proj", "fc2", "c_proj",
    )  # fmt: skip
    leaf = name.rpartition(".")[2]
    place = order.index(leaf) if leaf in order else len(order)
    return (int(located["layer"]), int("shared" in name), place, name)


# Reading -----------------------------------------------------------------------------------------


def read_imatrix(path: Path | str, plugins: PluginManager) -> Imatrix:
    """Read a file of any kind.

    Raises:
        CheckpointError: it is none, or damaged; names file and entry.
        MissingPluginError: it is a GGUF file, and nothing installed reads those.
    """
    path = Path(path).expanduser()
    try:
        with path.open("rb") as file:
            begin = file.read(4)
            if begin == b"GGUF":
                return _read_gguf(path, plugins)
            data = begin + file.read()
    except OSError as cause:
        raise CheckpointError(f"importance matrix {path}: {cause.strerror}") from cause
    reader = _Reader(path, data)
    found = reader.cimatrix() if path.suffix.lower() == CIMATRIX else reader.legacy()
    for name, values in (*found.values.items(), *found.positions.items()):
        if not bool((values.isfinite() & (values >= 0)).all()):
            raise reader.fail(f"{name} holds numbers that are negative or not finite")
    return found


class _Reader:
    """Walks a binary file. Every length is checked against what is left before it is used."""

    def __init__(self, path: Path, data: bytes) -> None:
        self.path, self.data, self.at = path, data, 0

    def fail(self, problem: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {problem}; it is damaged, or no importance matrix")

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def number(self, form: str, what: str) -> int:
        size = struct.calcsize(form)
        if size > self.left:
            raise self.fail(f"it ends within {what}")
        found: int = struct.unpack_from(form, self.data, self.at)[0]
        self.at += size
        return found

    def text(self, length: int, what: str) -> str:
        if not 0 < length <= min(self.left, _NAME_LIMIT):
            raise self.fail(f"{what} has a length of {length}")
        raw = self.data[self.at : self.at + length]
        self.at += length
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as cause:
            raise self.fail(f"{what} is not UTF-8") from cause

    def floats(self, count: int, what: str) -> Tensor:
        if not 0 < count <= self.left // 4:
            raise self.fail(f"{what} has {count} numbers, and {self.left} bytes are left")
        values = torch.frombuffer(
            bytearray(self.data[self.at : self.at + 4 * count]), dtype=torch.float32
        )
        self.at += 4 * count
        return values

    def legacy(self) -> Imatrix:
        """llama.cpp's ``.dat``: i32 count, then name, i32 calls, i32 length, f32 sums."""
        count = self.number("<i", "the number of entries")
        if not 0 < count <= self.left // 13:
            raise self.fail(f"it states {count} entries")
        values: dict[str, Tensor] = {}
        for index in range(count):
            what = f"entry {index}"
            name = self.text(self.number("<i", what), f"the name of {what}")
            calls = self.number("<i", what)
            sums = self.floats(self.number("<i", what), name)
            if name in values:
                raise self.fail(f"{name} occurs twice")
            values[name.removesuffix(".weight")] = sums / calls if calls > 0 else sums
        chunks = 0
        datasets: tuple[str, ...] = ()
        if self.left >= 4:
            chunks = max(self.number("<i", "the number of chunks"), 0)
        if self.left >= 4:
            length = self.number("<i", "the dataset")
            datasets = (self.text(length, "the dataset"),) if length else ()
        if self.left:
            raise self.fail(f"{self.left} bytes follow its last entry")
        return Imatrix(values=values, chunks=chunks, datasets=datasets)

    def cimatrix(self) -> Imatrix:
        """Both generations: places in a list, or names."""
        count = self.number("<Q", "the number of entries")
        if not 0 < count <= self.left // 9:
            raise self.fail(f"it states {count} entries")
        first = struct.unpack_from("<Q", self.data, self.at)[0] if self.left >= 9 else 0
        # The first generation begins with place 0 and a flag; no name is empty.
        return self._places(count) if first == 0 else self._names(count)

    def _places(self, count: int) -> Imatrix:
        positions: dict[int, Tensor] = {}
        for index in range(count):
            what = f"entry {index}"
            place, flag = self.number("<Q", what), self.number("<B", what)
            if place >= count or flag > 1:
                raise self.fail(f"{what} is for layer {place} with flag {flag}")
            if flag:
                positions[place] = self.floats(self.number("<Q", what), what)
        return self._ended(Imatrix(values={}, positions=positions))

    def _names(self, count: int) -> Imatrix:
        values: dict[str, Tensor] = {}
        for index in range(count):
            what = f"entry {index}"
            name = self.text(self.number("<Q", what), f"the name of {what}")
            values[name.removesuffix(".weight")] = self.floats(self.number("<Q", what), name)
        return self._ended(Imatrix(values=values))

    def _ended(self, found: Imatrix) -> Imatrix:
        if self.left:
            raise self.fail(f"{self.left} bytes follow its last entry")
        if not found.values and not found.positions:
            raise self.fail("it holds no statistics")
        return found


def _read_gguf(path: Path, plugins: PluginManager) -> Imatrix:
    """llama.cpp's newer form: sums of squares and counts for each tensor."""
    form = plugins.resolve(plugins.get("checkpoint_formats", "gguf"))()
    metadata, tensors = form.read_arrays(path)
    if metadata.get("general.type") != "imatrix":
        raise CheckpointError(
            f"{path} is a GGUF file of type {metadata.get('general.type', 'model')!r}, not an "
            f"importance matrix"
        )
    values: dict[str, Tensor] = {}
    for name, sums in tensors.items():
        if not name.endswith(".in_sum2"):
            continue
        stem = name.removesuffix(".in_sum2")
        counts = tensors.get(f"{stem}.counts")
        if counts is None or sums.dim() not in (1, 2) or counts.numel() != prod(sums.shape[:-1]):
            raise CheckpointError(f"{path}: {stem} lacks counts that fit its sums")
        counts = counts.reshape(*sums.shape[:-1], 1).float()
        means = torch.where(counts > 0, sums.float() / counts.clamp(min=1e-30), 0.0)
        if not bool((means.isfinite() & (means >= 0)).all()):
            raise CheckpointError(f"{path}: {stem} holds numbers that are negative or not finite")
        means = means[0] if means.dim() == 2 and means.shape[0] == 1 else means
        values[stem.removesuffix(".weight")] = means
    if not values:
        raise CheckpointError(f"{path} holds no statistics")
    datasets, chunks = metadata.get("imatrix.datasets", []), metadata.get("imatrix.chunk_count", 0)
    if not isinstance(datasets, list) or not all(isinstance(name, str) for name in datasets):
        raise CheckpointError(f"{path}: imatrix.datasets must be an array of strings")
    if type(chunks) is not int:
        raise CheckpointError(f"{path}: imatrix.chunk_count must be a whole number")
    return Imatrix(values=values, datasets=tuple(datasets), chunks=chunks)


# Writing -----------------------------------------------------------------------------------------


def write_cimatrix(path: Path, values: Mapping[str, Tensor]) -> None:
    """Write mistral.rs's newer form; put in place when whole.

    Args:
        values: module name → importances.
    """
    parts = [struct.pack("<Q", len(values))]
    for name, numbers in values.items():
        key = name.encode("utf-8")
        flat = numbers.detach().cpu().float().contiguous().view(-1)
        parts += [
            struct.pack("<Q", len(key)), key, struct.pack("<Q", flat.numel()),
            flat.numpy().tobytes(),
        ]  # fmt: skip
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(b"".join(parts))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_gguf(
    path: Path, imatrix: Imatrix, plugins: PluginManager, *, chunk_size: int = 512
) -> None:
    """Write llama.cpp's newer form. Names should be those of GGUF, ``blk.0.attn_q``.

    Raises:
        MissingPluginError: nothing installed writes GGUF files.
    """
    form = plugins.resolve(plugins.get("checkpoint_formats", "gguf"))()
    metadata: dict[str, Any] = {
        "general.type": "imatrix",
        "imatrix.datasets": list(imatrix.datasets) or ["unknown"],
        "imatrix.chunk_count": max(imatrix.chunks, 1),
        "imatrix.chunk_size": chunk_size,
    }
    arrays: dict[str, Tensor] = {}
    for name, numbers in imatrix.values.items():
        rows = numbers.float() if numbers.dim() == 2 else numbers.float()[None]
        arrays[f"{name}.weight.in_sum2"] = rows
        arrays[f"{name}.weight.counts"] = torch.ones(rows.shape[0], 1)
    form.write_arrays(path, metadata, arrays)
