"""Every language model is held to the architecture contract, under each of its names."""

from __future__ import annotations

import re
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
