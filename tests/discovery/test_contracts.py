"""Every language model is held to the architecture contract, and no plug-in copies another."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tramontane.hooks import ArchitectureSpec, plugin_manager
from tramontane.hooks.known import known_extras

ROOT = Path(__file__).parents[2]
PLACES = ("arch_*", "arch_*/*", "plugins/*")
OURS = {row["distribution"] for row in known_extras().values()}
SPECS = [
    spec
    for spec in plugin_manager().specs("architectures")
    if plugin_manager().owner(spec).distribution in OURS
]


def sources(spec: ArchitectureSpec) -> str:
    """The tests of the distribution that brings it."""
    name = plugin_manager().owner(spec).distribution.removeprefix("tramontane-")
    folders = {name.replace("-", "_"), f"arch_{name.replace('-', '_')}"}
    found = [
        path.read_text(encoding="utf-8")
        for place in PLACES
        for folder in ROOT.glob(place)
        if folder.name in folders
        for path in (folder / "tests").glob("test_*.py")
    ]
    assert found, f"no tests of {name}"
    return "\n".join(found)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_an_architecture_is_compared_with_its_reference(spec: ArchitectureSpec) -> None:
    text = sources(spec)
    if spec.kind == "text":
        compared = set(re.findall(r"^ +model_class = \"(\w+)\"", text, re.MULTILINE))
        # transformers has a spelling of its own for Phi-3.5-MoE.
        compared, names = ({n.lower() for n in found} for found in (compared, spec.hf_names))
        assert compared >= names, f"{spec.name}: no ArchitectureContract compares it"
        files = set(re.findall(r"^ +gguf_architecture = \"([\w-]+)\"", text, re.MULTILINE))
        assert files >= set(spec.gguf_names), f"{spec.name}: no contract reads its GGUF files"
    else:
        assert "SentenceTransformer(" in text


COPIED_LINES = 9
"""Lines alike, one after another, that are no coincidence. Shorter runs occur in the wiring of
layers, which each model writes out."""


def runs(path: Path) -> Iterator[tuple[str, ...]]:
    """Every run of that many lines of code; imports, comments and docstrings left out."""
    text = path.read_text(encoding="utf-8")
    left_out: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        bare = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if bare or isinstance(node, ast.Import | ast.ImportFrom):
            left_out.update(range(node.lineno, node.end_lineno + 1))
    lines = [
        line.strip()
        for number, line in enumerate(text.splitlines(), 1)
        if number not in left_out and line.strip() and not line.strip().startswith("#")
    ]
    return zip(*(lines[i:] for i in range(COPIED_LINES)), strict=False)


def test_no_plugin_copies_another_or_the_operators() -> None:
    places = ("arch_*", "arch_vision/*", "plugins/*", "quant_plugins/*", "mcp/*")
    folders = [folder for place in places for folder in ROOT.glob(place)]
    files = [path for folder in folders for path in folder.glob("src/**/*.py")]
    first: dict[tuple[str, ...], Path] = {}
    copied = []
    for path in [*files, *(ROOT / "core" / "src" / "tramontane" / "nn").glob("*.py")]:
        for run in runs(path):
            other = first.setdefault(run, path)
            if other.relative_to(ROOT).parts[:2] != path.relative_to(ROOT).parts[:2]:
                code = "\n".join(run)
                copied.append(f"{other} and {path} both have\n{code}")
    assert not copied, "move it to tramontane.nn: " + "\n\n".join(copied[:3])


def test_a_copy_would_be_found(tmp_path: Path) -> None:
    lines = [f"value_{i} = {i}" for i in range(COPIED_LINES)]
    (tmp_path / "a.py").write_text("import os\n" + "\n".join(lines), encoding="utf-8")
    (tmp_path / "b.py").write_text("\n# why\n".join(lines) + "\nx = 1\n", encoding="utf-8")
    assert set(runs(tmp_path / "a.py")) & set(runs(tmp_path / "b.py"))
