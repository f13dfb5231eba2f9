"""Every hook is documented with its true signature, and every extra with its true content."""

from __future__ import annotations

import importlib.util
import inspect
import re
import tomllib
from pathlib import Path

import pytest

from tramontane.hooks import PluginManager, hookspecs
from tramontane.hooks.known import known_extras
from tramontane.hooks.manager import SPEC_HOOKS

ROOT = Path(__file__).parents[2]
HOOKS = {name: hook for name, hook in vars(hookspecs).items() if name.startswith("tramontane_")}
WITHOUT_NAMES = {"kernels-cpu", "cli", "mistralrs", "all"}
"""Extras that provide no names to look up."""


def signature(name: str) -> str:
    return name + str(inspect.signature(HOOKS[name])).replace("'", "")


@pytest.fixture(scope="module")
def page() -> str:
    return (ROOT / "docs" / "hooks.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted(HOOKS))
def test_a_hook_has_a_docstring_and_a_section(name, page):
    assert inspect.getdoc(HOOKS[name])
    heading = f"### `{signature(name)}`\n"
    assert heading in page, f"docs/hooks.md lacks the heading {heading}"
    section = page.split(heading)[1].split("\n#")[0]
    assert section.strip()


def test_the_page_describes_no_other_hook(page):
    assert set(re.findall(r"^### `(tramontane_\w+)", page, re.MULTILINE)) == set(HOOKS)


def test_every_field_of_a_spec_is_on_the_page(page):
    for spec in SPEC_HOOKS.values():
        for field in spec.__attrs_attrs__:
            assert f"`{field.name}`" in page, f"{spec.__name__}.{field.name}"


@pytest.fixture(scope="module")
def extras() -> dict[str, list[str]]:
    project = tomllib.loads((ROOT / "core" / "pyproject.toml").read_text(encoding="utf-8"))
    return project["project"]["optional-dependencies"]


def test_released_rows_of_the_hint_table_are_extras(extras):
    released = {name for name, row in known_extras().items() if row.get("released", True)}
    assert released == set(extras) - WITHOUT_NAMES
    for name in released:
        assert f"{known_extras()[name]['distribution']}==0.1.*" in extras[name]


def test_all_is_every_extra(extras):
    (everything,) = extras["all"]
    named = re.fullmatch(r"tramontane\[(.*)\]", everything)[1].split(",")
    assert sorted(named) == sorted(set(extras) - {"all"})


def test_the_hint_table_says_what_the_plugins_provide():
    manager = PluginManager()
    for extra, row in known_extras().items():
        if not row.get("released", True):
            continue
        for kind in SPEC_HOOKS:
            specs = [
                spec
                for spec in manager.specs(kind)
                if manager.owner(spec).distribution == row["distribution"]
            ]
            assert {spec.name for spec in specs} == set(row.get(kind, ())), (extra, kind)
            for column in {"architectures": ["hf_names"], "quantizers": ["hf_methods"]}.get(
                kind, ()
            ):
                names = {name for spec in specs for name in getattr(spec, column)}
                assert names == set(row.get(column, ())), (extra, column)


@pytest.fixture(scope="module")
def writer():
    """The script that writes the generated parts of the documentation."""
    script = ROOT / "docs" / "write_models.py"
    spec = importlib.util.spec_from_file_location("write_models", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_models_is_what_the_plugins_declare(writer):
    written = writer.PAGE.read_text(encoding="utf-8")
    assert written == writer.page(PluginManager()), "run make docs"


def test_the_guide_counts_the_lines_there_are(writer):
    guide = writer.GUIDE.read_text(encoding="utf-8")
    assert writer.counted(guide) == guide, "run make docs"
    assert writer.counted(guide.replace(" | 7", " | 8")) == guide


def test_the_readme_names_what_brings_models():
    """Every released extra with architectures, and none that is not there yet."""
    table = (ROOT / "README.md").read_text(encoding="utf-8")
    (row,) = re.findall(r"^\| Architectures \|.*$", table, re.MULTILINE)
    released = {
        name
        for name, extra in known_extras().items()
        if extra.get("architectures") and extra.get("released", True)
    }
    assert set(re.findall(r"tramontane\[([\w-]+)\]", row)) == released
    extras = set(re.findall(r"tramontane\[([\w-]+)\]", table))
    assert all(known_extras().get(name, {}).get("released", True) for name in extras)
