"""Every distribution of the repository is known to the tools and to core's extras."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PLACES = ("core", "arch_*", "arch_*/*", "plugins/*", "quant_plugins/*", "mcp/*", "tests/testkit")
FOLDERS = sorted(file.parent for place in PLACES for file in ROOT.glob(f"{place}/pyproject.toml"))
NOT_EXTRAS = {"tramontane", "tramontane-testkit"}


def toml(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


def project(folder: Path) -> dict[str, Any]:
    return toml(folder / "pyproject.toml")["project"]


@pytest.fixture(scope="module")
def tools() -> dict[str, Any]:
    return toml(ROOT / "pyproject.toml")["tool"]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_distribution_is_known_everywhere(folder, tools):
    here = project(folder)
    core = project(ROOT / "core")
    assert here["version"] == core["version"]
    assert here["requires-python"] == core["requires-python"]
    assert (folder / "README.md").is_file()
    packages = [init.parent.name for init in folder.glob("src/*/__init__.py")]
    assert packages
    for package in packages:
        assert package in tools["mypy"]["packages"]
        assert package in tools["importlinter"]["root_packages"]
    if here["name"] not in NOT_EXTRAS:
        pinned = f"{here['name']}==0.1.*"
        assert any(pinned in extra for extra in core["optional-dependencies"].values())


def test_plugins_pin_core_to_their_own_release():
    for folder in FOLDERS:
        here = project(folder)
        if here["name"] != "tramontane":
            assert "tramontane==0.1.*" in here["dependencies"], here["name"]


def test_the_contract_between_plugins_names_each(tools):
    (independence,) = (
        contract
        for contract in tools["importlinter"]["contracts"]
        if contract["type"] == "independence"
    )
    everything = set(tools["importlinter"]["root_packages"])
    assert everything - set(independence["modules"]) == {"tramontane", "tramontane_testkit"}
