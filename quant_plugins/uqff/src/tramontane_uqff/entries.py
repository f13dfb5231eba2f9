"""Generation 1: each part of a weight is a tensor of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tramontane.errors import CheckpointError
from tramontane.loading.tensors import SafetensorsCheckpoint
from tramontane_uqff.layout import (
    FLOATS,
    MAX_DIMS,
    SCALARS,
    SHAPED,
    TENSORS,
    VERSION,
    VERSION_KEYS,
    Kind,
)
from tramontane_uqff.parts import StoredWeight

_FORMAT = ".weight.format"


class Entries:
    """The shards of one model. A `Source` of `tramontane_uqff.checkpoint`.

    Raises:
        CheckpointError: a version from the future, a key that is in two shards, parts that are
            absent, left over or of a wrong dtype; names file and tensor.
    """

    def __init__(self, shards: Sequence[tuple[Path, SafetensorsCheckpoint]]) -> None:
        self._where: dict[str, tuple[Path, SafetensorsCheckpoint]] = {}
        versions: dict[str, int] = {}
        for path, shard in shards:
            for name in shard.names():
                if name in VERSION_KEYS:
                    number = _scalar(shard.tensor(name), torch.uint32, f"{path}: {name!r}")
                    if versions.setdefault(name, int(number)) != number:
                        raise CheckpointError(
                            f"{path}: {name} is {number}, in an earlier shard {versions[name]}; "
                            f"the shards do not belong together"
                        )
                elif name in self._where:
                    raise CheckpointError(
                        f"tensor {name!r} is in {self._where[name][0]} and in {path}; "
                        f"the shards do not belong together"
                    )
                else:
                    self._where[name] = path, shard
        _check_version(shards[0][0], versions)
        self._kinds = dict(self._weights())
        self._check_complete()

    def names(self) -> list[str]:
        biases = (f"{key}.bias" for key in self._kinds if f"{key}.bias" in self._where)
        return [*(f"{key}.weight" for key in self._kinds), *biases]

    def stored(self, name: str) -> StoredWeight | Tensor:
        """The parts of a weight, or a bias."""
        key = name.removesuffix(".weight")
        if key == name or key not in self._kinds:
            bias = self._tensor(name)
            if bias.dtype not in FLOATS:
                raise CheckpointError(f"{self._place(name)} is a bias stored as {bias.dtype}")
            return bias
        kind = self._kinds[key]
        where = self._place(name)
        parts: dict[str, Any] = {}
        for part, dtypes in TENSORS[kind].items():
            tensor = self._tensor(_part(name, part))
            if tensor.dtype not in dtypes:
                raise CheckpointError(
                    f"{self._place(_part(name, part))} of a weight in {kind.name} is stored as "
                    f"{_named(tensor.dtype)}, not {' or '.join(map(_named, dtypes))}"
                )
            parts[part] = tensor
        for part, dtype in SCALARS[kind].items():
            part_name = _part(name, part)
            parts[part] = _scalar(self._tensor(part_name), dtype, self._place(part_name))
        if kind in SHAPED:
            parts["shape"] = self._shape(_part(name, "shape"))
        return StoredWeight(where, kind, parts)

    def release(self, name: str) -> None:
        """Let the pages of a weight's parts leave memory."""
        for stored in (name, _part(name, "scales"), _part(name, "zeros"), _part(name, "biases")):
            if stored in self._where:
                self._where[stored][1].release(stored)

    @property
    def nbytes(self) -> int:
        shards = {id(shard): shard for _, shard in self._where.values()}
        return sum(shard.nbytes for shard in shards.values())

    def _weights(self) -> Iterator[tuple[str, Kind]]:
        for name in self._where:
            if not name.endswith(_FORMAT):
                continue
            number = _scalar(self._tensor(name), torch.uint8, self._place(name))
            if number not in Kind._value2member_map_:
                known = ", ".join(f"{kind.value} {kind.name}" for kind in Kind)
                raise CheckpointError(
                    f"{self._place(name)} is {number}, which is no format of a weight; known are "
                    f"{known}"
                )
            yield name.removesuffix(_FORMAT), Kind(int(number))

    def _check_complete(self) -> None:
        """Every part there, and nothing else."""
        expected: dict[str, str] = {}
        for key, kind in self._kinds.items():
            name = f"{key}.weight"
            wanted = ["format", *TENSORS[kind], *SCALARS[kind]]
            wanted += ["shape"] if kind in SHAPED else []
            for part in wanted:
                if _part(name, part) not in self._where:
                    raise CheckpointError(
                        f"{self._place(name + '.format')} says {kind.name}, which needs "
                        f"{_part(name, part)!r}; no shard has it: one may be missing"
                    )
                expected[_part(name, part)] = key
            expected[f"{key}.bias"] = key
        extra = next((name for name in self._where if name not in expected), None)
        if extra is not None:
            raise CheckpointError(f"{self._place(extra)} belongs to no weight of the file")

    def _shape(self, name: str) -> tuple[int, ...]:
        tensor = self._tensor(name)
        if tensor.dtype is not torch.uint32 or tensor.dim() != 1 or tensor.numel() > MAX_DIMS:
            raise CheckpointError(
                f"{self._place(name)} is no list of at most {MAX_DIMS} sizes, U32"
            )
        return tuple(tensor.tolist())

    def _tensor(self, name: str) -> Tensor:
        _, shard = self._where.get(name, (None, None))
        if shard is None:
            raise CheckpointError(f"no shard holds {name!r}")
        return shard.tensor(name)

    def _place(self, name: str) -> str:
        path = self._where[name][0] if name in self._where else "the file"
        return f"{path}: {name!r}"


def _part(name: str, part: str) -> str:
    return f"{name}.{part}" if part else name


def _scalar(tensor: Tensor, dtype: torch.dtype, where: str) -> int | float:
    if tensor.dtype is not dtype or tensor.numel() != 1:
        raise CheckpointError(
            f"{where} is {_named(tensor.dtype)} of shape {list(tensor.shape)}, not one number of "
            f"{_named(dtype)}"
        )
    number: int | float = tensor.item()
    return number


def _check_version(path: Path, versions: dict[str, int]) -> None:
    absent = [key for key in VERSION_KEYS if key not in versions]
    if absent:
        raise CheckpointError(
            f"{path} has no {absent[0]}: it is no UQFF file, or its first shard is missing"
        )
    major, minor, patch = (versions[key] for key in VERSION_KEYS)
    if major != VERSION[0] or minor > VERSION[1]:
        ours = ".".join(map(str, VERSION))
        raise CheckpointError(
            f"{path} is UQFF {major}.{minor}.{patch}; this release reads up to {ours}. Install a "
            f"newer tramontane-uqff, or quantize the model anew"
        )


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
