"""Plug-ins that there are, before any of them is loaded."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from importlib import metadata
from typing import Any

from attrs import frozen

from tramontane.hooks.hookspecs import GROUP

BUILT_IN = (
    "tramontane.loading.plugin",
    "tramontane.pipeline.plugin",
    "tramontane.text.tool_calls.plugin",
)
"""Core's own plug-in modules: they take the same road as everybody else's."""


@frozen
class Candidate:
    """A plug-in before it is loaded.

    Attributes:
        name, module, distribution, version: as in `PluginInfo`.
        entry_point: what loads it; None for core's own and for those already ``loaded``.
        loaded: the module or object itself, where somebody handed it over.
    """

    name: str
    module: str
    distribution: str
    version: str
    entry_point: metadata.EntryPoint | None = None
    loaded: Any = None

    def load(self) -> Any:
        if self.loaded is not None:
            return self.loaded
        if self.entry_point is not None:
            return self.entry_point.load()
        return importlib.import_module(self.module)


def built_in() -> Iterator[Candidate]:
    """Core's own."""
    try:
        version = metadata.version("tramontane")
    except metadata.PackageNotFoundError:
        version = "unknown"
    for module in BUILT_IN:
        yield Candidate(module.split(".")[-2], module, "tramontane", version)


def installed() -> list[Candidate]:
    """Those of the entry points, in an order of ours."""
    found = []
    for point in metadata.entry_points(group=GROUP):
        name = point.dist.name if point.dist else "unknown"
        version = point.dist.version if point.dist else "unknown"
        found.append(Candidate(point.name, point.value, name, version, entry_point=point))
    # Theirs follows the file system.
    return sorted(found, key=lambda c: (c.distribution, c.name))


def given(plugin: Any) -> Candidate:
    """A module or object that is not packaged."""
    name = getattr(plugin, "__name__", type(plugin).__name__)
    version = str(getattr(plugin, "__version__", "unpackaged"))
    return Candidate(name, name, name, version, loaded=plugin)
