"""Distributions that exist for one test: a module and the metadata a plug-in is found by."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import pytest

Install = Callable[..., str]

HEAD = "from tramontane.hooks import ArchitectureSpec, PipelineSpec, hookimpl\n"


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """``install("acme", "1.2", source)`` puts a distribution with one plug-in on the path and
    returns the name of its module."""
    monkeypatch.syspath_prepend(str(tmp_path))
    modules: list[str] = []

    def add(distribution: str, version: str, source: str) -> str:
        module = f"{distribution.replace('-', '_')}_plugin"
        (tmp_path / f"{module}.py").write_text(HEAD + dedent(source), encoding="utf-8")
        info = tmp_path / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        metadata = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
        (info / "METADATA").write_text(metadata, encoding="utf-8")
        points = f"[tramontane]\n{distribution} = {module}\n"
        (info / "entry_points.txt").write_text(points, encoding="utf-8")
        modules.append(module)
        return module

    yield add
    for module in modules:
        sys.modules.pop(module, None)


def architecture(name: str, **fields: object) -> str:
    """Source of a plug-in that declares one architecture."""
    extra = "".join(f", {key}={value!r}" for key, value in fields.items())
    return f"""
        @hookimpl
        def tramontane_architectures():
            return [ArchitectureSpec(name={name!r}, target="nowhere:Model"{extra})]
    """


@pytest.fixture
def one_architecture() -> Callable[..., str]:
    return architecture
