"""The contract of a ``plugin.py``: cheap to import, and everything it declares is there."""

from __future__ import annotations

import importlib
import subprocess
import sys
from importlib import metadata
from typing import Any, ClassVar

import pytest

from tramontane.hooks import GROUP, PluginManager
from tramontane.hooks.manager import SPEC_HOOKS

_PROBE = """
import importlib, sys
from tramontane.hooks import PluginManager
manager = PluginManager([importlib.import_module({plugin!r})], discover=False, strict=False)
sys.exit("torch was imported" if "torch" in sys.modules else 0)
"""


class HooksContract:
    """Subclass, name it ``Test…`` and fill in the attributes.

    Attributes:
        plugin: import name of the plug-in module.
        distribution: the distribution that carries it, or None where it is not packaged.
    """

    plugin: ClassVar[str]
    distribution: ClassVar[str | None] = None

    @pytest.fixture
    def manager(self) -> PluginManager:
        """A manager with core's plug-ins and this one only."""
        return PluginManager([importlib.import_module(self.plugin)], discover=False)

    def test_discovery_imports_no_torch(self) -> None:
        code = _PROBE.format(plugin=self.plugin)
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr

    def test_every_target_can_be_imported(self, manager: PluginManager) -> None:
        specs = self._specs(manager)
        assert specs or manager.plugins()[-1].hooks, f"{self.plugin} implements no hook"
        for spec in specs:
            if hasattr(spec, "target"):
                assert manager.resolve(spec) is not None

    def test_every_spec_has_a_summary(self, manager: PluginManager) -> None:
        without = [s.name for s in self._specs(manager) if getattr(s, "summary", "x") == ""]
        assert not without

    def test_architectures_keep_the_protocol(self, manager: PluginManager) -> None:
        for spec in self._specs(manager):
            if type(spec).__name__ != "ArchitectureSpec":
                continue
            target = manager.resolve(spec)
            names = ("Config", "WEIGHTS", "PARALLEL_PLAN", "cache_specs", "forward")
            for name in (*names, "logits") if spec.kind in ("text", "vision") else names:
                assert hasattr(target, name), f"{spec.name} lacks {name}"
            assert callable(target.Config.from_dict)

    def test_installed_under_the_entry_point(self) -> None:
        if self.distribution is None:
            pytest.skip("not packaged")
        points = metadata.entry_points(group=GROUP)
        mine = [p for p in points if p.dist is not None and p.dist.name == self.distribution]
        assert self.plugin in [p.value for p in mine]

    def _specs(self, manager: PluginManager) -> list[Any]:
        info = manager.plugins()[-1]
        assert info.module == self.plugin
        return [s for kind in SPEC_HOOKS for s in manager.specs(kind) if manager.owner(s) is info]
