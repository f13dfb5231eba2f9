"""Damaged files that are kept: one for each place where a reader refuses, so that fuzzing begins
with what it has learnt and the tests read them all.

An archive holds the files of a reader; most are all but equal, so that they take little together.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from attrs import evolve

from .readers import Sample  # noqa: TID252

FOLDER = Path(__file__).parent / "corpus"


def load(reader: str, samples: Sequence[Sample]) -> list[Sample]:
    """The kept files of a reader, oldest first.

    Args:
        samples: the valid files that they were made from.
    """
    path = FOLDER / f"{reader}.tar.xz"
    if not path.exists():
        return []
    found = []
    with tarfile.open(path) as archive:
        for member in archive:
            content = archive.extractfile(member)
            assert content is not None
            number, _, file = member.name.partition("-")
            data = content.read()
            parent = next(sample for sample in samples if sample.file == file)
            found.append(derived(parent, data, number))
    return found


def derived(parent: Sample, data: bytes, name: str) -> Sample:
    """A damaged file to damage further."""
    header = min(parent.header, len(data))
    return evolve(parent, name=f"kept {name}", data=data, header=header, spots=())


def save(reader: str, files: Sequence[Sample]) -> None:
    """Write the kept files of a reader anew."""
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{reader}.tar.xz"
    aside = path.with_suffix(".new")
    with tarfile.open(aside, "w:xz", preset=9) as archive:
        for number, sample in enumerate(files):
            member = tarfile.TarInfo(f"{number:03}-{sample.file}")
            member.size = len(sample.data)
            archive.addfile(member, io.BytesIO(sample.data))
    aside.rename(path)


def smallest(kept: Mapping[str, Sample]) -> list[Sample]:
    """One file for each place, each file once, small ones first."""
    files = {sample.data: sample for sample in kept.values()}
    return sorted(files.values(), key=lambda sample: len(sample.data))
