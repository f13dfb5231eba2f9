"""From what a user calls a UQFF model to its files: names, shards, or just a type or a number of
bits."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from tramontane.errors import CheckpointError, SourceError
from tramontane_uqff.layout import RESIDUAL, SUFFIX
from tramontane_uqff.report import Output, read_report

Fetch = Callable[[Sequence[str]], Path]
"""``fetch(patterns)``: the model's directory, with the files of these patterns in it."""

_SHARD = re.compile(r"(?P<stem>.*)-(?P<number>\d{1,6})\.uqff")

_BITS = {
    "2": ("q2k", "afq2"), "3": ("q3k", "afq3"), "4": ("q4k", "afq4"), "5": ("q5k",),
    "6": ("q6k", "afq6"), "8": ("q8_0", "afq8"),
}  # fmt: skip
"""A number of bits → types it may mean, the preferred first."""

_SIZED = re.compile(r"q(\d)_?k(_[sml])?")


def find_shards(names: Sequence[str], fetch: Fetch) -> list[Path]:
    """Every shard of the models that ``names`` call, in order, each once.

    A name is looked for in the report, as a file, and as a type whose files begin with it. A file
    whose name ends in a number brings all shards of its set.

    Args:
        names: ``q4k-0.uqff``, ``Q4K`` or ``4``; relative to the model's directory.
        fetch: brings files that are not there yet.

    Raises:
        SourceError: there is no such file; lists those there are.
        CheckpointError: a shard of a set is missing.
    """
    found: dict[Path, None] = {}
    for name in names:
        found |= dict.fromkeys(_resolved(name, fetch))
    if not found:
        raise SourceError("from_uqff names no file")
    return list(found)


def _resolved(name: str, fetch: Fetch) -> list[Path]:
    directory = fetch(())
    report = read_report(directory)
    types = _types(name)
    output = next((o for o in report if name in o.shards), None)
    if output is None:
        matching = (o for t in types for o in report if o.quant in (t, name.lower()))
        output = next(matching, None)
    if output is not None:
        return _of_report(output, directory, fetch)
    stems = [name.removesuffix(SUFFIX)] if name.endswith(SUFFIX) else [f"{t}-0" for t in types]
    for stem in stems:
        files = _of_file(PurePosixPath(f"{stem}{SUFFIX}"), fetch)
        if files:
            return files
    there = sorted(str(p.relative_to(directory)) for p in directory.rglob(f"*{SUFFIX}"))
    quants = [o.quant for o in report]
    raise SourceError(
        f"{directory} has no UQFF file {name!r}; it has {', '.join(there) or 'none'}"
        + (f", of types {', '.join(quants)}" if quants else "")
    )


def _types(name: str) -> tuple[str, ...]:
    """Types that a shorthand may mean; none for the name of a file."""
    if name.endswith(SUFFIX):
        return ()
    lowered = name.lower()
    sized = _SIZED.fullmatch(lowered)
    return _BITS.get(lowered, (f"q{sized[1]}k" if sized else lowered,))


def _of_report(output: Output, directory: Path, fetch: Fetch) -> list[Path]:
    fetch((*output.shards, RESIDUAL))
    files = [directory / shard for shard in output.shards]
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        raise CheckpointError(
            f"{directory} lacks {', '.join(absent)} of the {len(files)} shards that its report "
            f"names for {output.quant}; fetch them again"
        )
    return files


def _of_file(path: PurePosixPath, fetch: Fetch) -> list[Path]:
    """The file, and with a numbered one all of its set; nothing where there is no such file."""
    shard = _SHARD.fullmatch(path.name)
    pattern = path.name if shard is None else f"{shard['stem']}-*{SUFFIX}"
    directory = fetch([str(path.with_name(n)) for n in (pattern, RESIDUAL)])
    file = directory / path
    if not file.is_file():
        return []
    if shard is None:
        return [file]
    stem = shard["stem"]
    numbers = sorted(
        int(m["number"])
        for p in file.parent.iterdir()
        if (m := _SHARD.fullmatch(p.name)) and m["stem"] == stem
    )
    absent = sorted(set(range(numbers[-1] + 1)) - set(numbers))
    if absent:
        raise CheckpointError(
            f"{file.parent} holds {stem}-{numbers[-1]}{SUFFIX} but not "
            f"{', '.join(f'{stem}-{n}{SUFFIX}' for n in absent[:8])}; fetch it again"
        )
    return [file.with_name(f"{stem}-{number}{SUFFIX}") for number in numbers]
