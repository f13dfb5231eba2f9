"""Which files of a model directory hold its weights."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from tramontane.errors import CheckpointError, SourceError
from tramontane.hooks import PluginManager
from tramontane.text.json_files import read_json

STEMS = (("model", r"safetensors"), ("pytorch_model", r"bin|pth|pt"))
"""Standard names of weight files, the preferred first."""


def named_files(directory: Path, names: Sequence[str]) -> tuple[Path, ...]:
    """The files the user named.

    Raises:
        SourceError: one of them is absent; lists files of that kind that are there.
    """
    if not names:
        raise SourceError(f"no weight file of {directory} was named; {_contents(directory)}")
    paths = tuple(directory / name for name in names)
    for path in paths:
        if not path.is_file():
            raise SourceError(
                f"{directory} has no file {path.name}; {_contents(directory, path.suffix)}"
            )
    return paths


def choose_weights(directory: Path, plugins: PluginManager) -> tuple[Path, ...]:
    """The weight files of a directory: safetensors, else PyTorch files, else the one file of
    another format that some plug-in reads.

    Raises:
        SourceError: there are none, or several models; lists what there is.
        CheckpointError: shards are absent, or an index is damaged.
    """
    names = sorted(path.name for path in directory.iterdir() if path.is_file())
    for stem, suffixes in STEMS:
        single = re.compile(rf"{stem}\.({suffixes})")
        found = [name for name in names if single.fullmatch(name)]
        if found:
            return (directory / found[0],)
        index = directory / f"{stem}.{suffixes.split('|')[0]}.index.json"
        if index.is_file():
            return _indexed(index)
        shard = re.compile(rf"{stem}-(\d+)-of-(\d+)\.({suffixes})")
        shards = [name for name in names if shard.fullmatch(name)]
        if shards:
            return _complete(directory, shards, shard)
    standard = (".safetensors", ".bin", ".pth", ".pt")
    others = [
        name
        for name in names
        if not name.endswith(standard) and plugins.checkpoint_for(name) is not None
    ]
    if len(others) == 1:
        return (directory / others[0],)
    if others:
        raise SourceError(f"{directory} holds several models; name one of {', '.join(others)}")
    raise SourceError(
        f"{directory} holds no weights: neither model.safetensors (or its shards) nor "
        f"pytorch_model.bin (or its shards) nor a file that an installed plug-in reads; "
        f"{_contents(directory)}"
    )


def _indexed(index: Path) -> tuple[Path, ...]:
    """Shards named by a ``*.index.json``, each once."""
    weight_map = (read_json(index) or {}).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map from tensors to shards")
    shards = []
    for name in dict.fromkeys(weight_map.values()):
        if not isinstance(name, str) or PurePosixPath(name).is_absolute() or ".." in name:
            raise CheckpointError(f"{index} names {name!r}, which is no file of the directory")
        shards.append(index.parent / name)
    absent = [path.name for path in shards if not path.is_file()]
    if absent:
        raise CheckpointError(
            f"{index} names shards that are not there: {', '.join(absent)}; fetch them again"
        )
    return tuple(shards)


def _complete(directory: Path, names: list[str], shard: re.Pattern[str]) -> tuple[Path, ...]:
    """Shards without an index; their names say how many there must be."""
    found = {(int(m[1]), int(m[2])) for m in map(shard.fullmatch, names) if m}
    totals = {total for _, total in found}
    total = max(totals)
    absent = sorted(set(range(1, total + 1)) - {number for number, _ in found})
    if len(totals) > 1 or absent:
        raise CheckpointError(
            f"{directory} holds an incomplete set of shards: {', '.join(names)}; "
            f"absent of {total}: {', '.join(map(str, absent)) or 'none'}"
        )
    return tuple(directory / name for name in names)


def _contents(directory: Path, suffix: str = "") -> str:
    names = sorted(path.name for path in directory.iterdir())
    alike = [name for name in names if name.endswith(suffix)]
    if suffix and not alike:
        return f"it holds no {suffix} file; it holds {', '.join(names) or 'nothing'}"
    return f"it holds {', '.join(alike) or 'nothing'}"
