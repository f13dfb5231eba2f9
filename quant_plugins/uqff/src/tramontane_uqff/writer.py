"""Writing UQFF 1.2: everything aside in one folder, then put in place file by file.

A run that is interrupted leaves nothing; one that fails while files are put in place restores what
was there.
"""

from __future__ import annotations

import filecmp
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tramontane.errors import ValidationError
from tramontane.hooks import PluginManager
from tramontane.loading.loader import BoundModel
from tramontane.loading.sentence_modules import module_folders
from tramontane.loading.tensors import SafetensorsCheckpoint
from tramontane.protocols import PackedWeight
from tramontane.protocols.pipeline import Progress
from tramontane.text.json_files import read_json
from tramontane_uqff.layout import (
    MAX_SHARD_BYTES,
    REPORT,
    RESIDUAL,
    SUFFIX,
    VERSION,
    VERSION_KEYS,
)
from tramontane_uqff.outgoing import Entry, Outgoing, taken_apart
from tramontane_uqff.report import described, merged

_METADATA = {"uqff.producer": "tramontane", "uqff.version": ".".join(map(str, VERSION))}

SIDE_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja",
    "chat_template.json", "generation_config.json", "processor_config.json",
    "preprocessor_config.json", "modules.json", "config_sentence_transformers.json",
    "sentence_bert_config.json",
)  # fmt: skip
"""What travels with a model beside its weights and ``config.json``."""


def first_shard(path: Path) -> Path:
    """The first file that writing to ``path`` makes: ``q4k-0.uqff`` for ``q4k.uqff``."""
    return path.with_name(f"{path.name.removesuffix(SUFFIX)}-0{SUFFIX}")


def check_output(path: Path) -> None:
    """Refuse names that UQFF cannot be written under.

    Raises:
        ValidationError: the name does not end in ``.uqff``, or is a directory.
    """
    if path.suffix != SUFFIX or path.is_dir():
        raise ValidationError(
            f"{path} cannot be written: the name of a UQFF file ends in {SUFFIX}, e.g. "
            f"{path.with_suffix('')}/q4k{SUFFIX}"
        )


def write_bound(
    bound: BoundModel,
    path: Path,
    type_name: str,
    plugins: PluginManager,
    *,
    on_progress: Progress | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> list[Path]:
    """Write a model's directory: shards, residual, configuration, tokenizer and report.

    Args:
        bound: weights packed as they are to be stored.
        path: ``out/q4k.uqff`` for ``out/q4k-0.uqff`` and so on.
        type_name: what they were packed as, for the report.
        plugins: where the formats' quantizers are.
        on_progress: told after each weight.
        max_shard_bytes: where a shard ends and the next begins.

    Returns:
        The shards.

    Raises:
        ValidationError: the directory holds another model.
        UnsupportedError: a weight that UQFF has no form for.
    """
    check_output(path)
    outgoing = taken_apart(bound, plugins)
    stem = path.name.removesuffix(SUFFIX)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _aside(path.parent) as folder:
        entries: list[Entry] = []
        shards: list[str] = []
        for number, shard in enumerate(_shards(outgoing, max_shard_bytes, on_progress)):
            version = zip(VERSION_KEYS, VERSION, strict=True)
            tensors = {k: torch.tensor(v, dtype=torch.uint32) for k, v in version}
            for entry in shard:
                tensors |= entry.parts
                entries.append(_without_data(entry))
            shards.append(f"{stem}-{number}{SUFFIX}")
            save_file(tensors, folder / shards[-1], metadata=_METADATA)
        save_file(_residual(bound, outgoing), folder / RESIDUAL, metadata=_METADATA)
        _write_side_files(bound, folder)
        _write_modules(bound.directory, folder)
        output = described(type_name.lower(), shards, entries)
        others = [o for o in _others(path.parent, stem) if o not in shards]
        report = merged(path.parent, output, keep=others)
        (folder / REPORT).write_text(json.dumps(report, indent=2), encoding="utf-8")
        if others:
            _check_same_model(path.parent, folder)
        stale = [f for f in _set_of(path.parent, stem) if f.name not in shards]
        _put_in_place(folder, path.parent, stale)
    return [path.parent / shard for shard in shards]


def _shards(outgoing: Outgoing, limit: int, on_progress: Progress | None) -> Iterator[list[Entry]]:
    """Entries in order; a new shard before one would exceed the limit."""
    shard: list[Entry] = []
    nbytes = 0
    for done, make in enumerate(outgoing.entries.values(), 1):
        entry = make()
        if shard and nbytes + entry.nbytes > limit:
            yield shard
            shard, nbytes = [], 0
        shard.append(entry)
        nbytes += entry.nbytes
        if on_progress is not None:
            on_progress(done, len(outgoing.entries), entry.key)
    if shard:
        yield shard


def _without_data(entry: Entry) -> Entry:
    return Entry(entry.key, entry.shape, entry.label, {})


def _residual(bound: BoundModel, outgoing: Outgoing) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name in outgoing.residual:
        value = bound.checkpoint.tensor(name)
        if isinstance(value, PackedWeight):
            value = value.dequantize(torch.bfloat16)
        tensors[name] = value.detach().cpu().contiguous()
    return tensors


def _write_side_files(bound: BoundModel, folder: Path) -> None:
    # Normalized, with old and new keys: mistral.rs knows only some of them.
    text = json.dumps(_unquantized(bound.config), indent=2)
    (folder / "config.json").write_text(text, encoding="utf-8")
    for name in SIDE_FILES:
        if (bound.directory / name).is_file():
            shutil.copyfile(bound.directory / name, folder / name)
    if not (folder / "tokenizer.json").exists():
        bound.tokenizer.backend.save(str(folder / "tokenizer.json"))
    if not (folder / "tokenizer_config.json").exists():
        named = json.dumps(bound.tokenizer.special_tokens, indent=2)
        (folder / "tokenizer_config.json").write_text(named, encoding="utf-8")


def _write_modules(directory: Path, folder: Path) -> None:
    """What follows the language model in an embedding model."""
    for name in module_folders(directory):
        target = folder / name
        target.mkdir(parents=True)
        for file in (directory / name).iterdir():
            if file.name == "config.json" or file.suffix in (".safetensors", ".bin"):
                shutil.copyfile(file, target / file.name)


def _unquantized(value: Any) -> Any:
    """A configuration without ``quantization_config``, nested ones included."""
    if isinstance(value, Mapping):
        return {k: _unquantized(v) for k, v in value.items() if k != "quantization_config"}
    return [_unquantized(v) for v in value] if isinstance(value, list) else value


def _set_of(directory: Path, stem: str) -> list[Path]:
    """Shards of this name that are there."""
    pattern = re.compile(rf"{re.escape(stem)}-\d+{re.escape(SUFFIX)}")
    return [p for p in directory.iterdir() if pattern.fullmatch(p.name)]


def _others(directory: Path, stem: str) -> list[str]:
    """Shards of other names that are there."""
    own = {p.name for p in _set_of(directory, stem)}
    return sorted(p.name for p in directory.glob(f"*{SUFFIX}") if p.name not in own)


def _check_same_model(directory: Path, folder: Path) -> None:
    """Sets of several types may share a directory, and with it the residual."""
    same = read_json(directory / "config.json") == read_json(folder / "config.json")
    if (directory / RESIDUAL).is_file():
        there, new = (SafetensorsCheckpoint([d / RESIDUAL]) for d in (directory, folder))
        same = same and set(there.names()) == set(new.names())
        same = same and all(_equal(there.tensor(n), new.tensor(n)) for n in new.names())
    for path in _files(folder):
        if path.parent != folder:  # of a module after the language model
            other = directory / path.relative_to(folder)
            same = same and other.is_file() and filecmp.cmp(path, other, shallow=False)
    if not same:
        raise ValidationError(
            f"{directory} holds other UQFF files, and what is not quantized in this model is "
            f"not the same there; write to a directory of its own"
        )


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.dtype is other.dtype and torch.equal(one, other)


@contextmanager
def _aside(directory: Path) -> Iterator[Path]:
    """A folder beside the final files, gone afterwards."""
    existed = any(directory.iterdir())
    folder = Path(tempfile.mkdtemp(prefix=".tramontane-uqff-", dir=directory))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if not existed and not any(directory.iterdir()):
            directory.rmdir()


def _files(folder: Path) -> list[Path]:
    """Every file below a folder."""
    return [path for path in folder.rglob("*") if path.is_file()]


def _put_in_place(folder: Path, directory: Path, stale: list[Path]) -> None:
    """Rename everything; what was there comes back when something fails."""
    new = {file: directory / file.relative_to(folder) for file in _files(folder)}
    kept = folder / "replaced"
    undo: list[Callable[[], object]] = []
    try:
        for old in (*stale, *new.values()):
            if old.exists():
                aside = kept / old.relative_to(directory)
                aside.parent.mkdir(parents=True, exist_ok=True)
                old.rename(aside)
                undo.append(lambda old=old, aside=aside: aside.replace(old))  # type: ignore[misc]
        for file, target in new.items():
            if not target.parent.is_dir():
                target.parent.mkdir(parents=True)
                undo.append(target.parent.rmdir)
            undo.append(lambda target=target: target.unlink(missing_ok=True))  # type: ignore[misc]
            file.rename(target)
    except BaseException:
        for step in reversed(undo):
            step()
        raise
