"""Which extra would provide a name that nothing installed claims: reads ``known.toml``."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib import resources
from typing import Any

_ALSO = {"architectures": ("hf_names",), "quantizers": ("hf_methods",)}


@cache
def known_extras() -> dict[str, dict[str, Any]]:
    """Extra → its row of ``known.toml``."""
    text = resources.files("tramontane.hooks").joinpath("known.toml").read_text("utf-8")
    extras: dict[str, dict[str, Any]] = tomllib.loads(text)["extras"]
    return extras


def hint_for(column: str, name: str) -> str | None:
    """The sentence that says what provides ``name``, or None when this project knows no such name.

    Args:
        column: ``"architectures"``, ``"quantizers"``, … ; these two match by Hugging Face's name
            of the class or the method too.
        name: compared without case.
    """
    columns = (column, *_ALSO.get(column, ()))
    for extra, row in known_extras().items():
        names = {entry.lower() for key in columns for entry in row.get(key, ())}
        if name.lower() in names:
            distribution = row["distribution"]
            if row.get("released", True):
                return (
                    f"{name} is provided by {distribution}, which is not installed: "
                    f"pip install 'tramontane[{extra}]'"
                )
            return (
                f"{name} belongs to {distribution}, which this release does not include yet; "
                f"a plug-in of yours may provide it (docs/hooks.md)"
            )
    return None
