"""Which implementation is bound, and why."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch

from tramontane.errors import ConfigError
from tramontane.hooks import KernelSpec, PluginManager, hookimpl
from tramontane.kernels import dispatch
from tramontane.kernels.features import features
from tramontane.kernels.reference import packed_linear, paged_attention

CPU = torch.device("cpu")


def fast(*args: Any, **options: Any) -> str:
    """A kernel for every case."""
    return "fast"


def picky(*args: Any, **options: Any) -> str:
    """A kernel for one format."""
    return "picky"


picky.supports = lambda **facts: facts.get("format") == "gguf.q4_k"  # type: ignore[attr-defined]


def spec(name: str, target: str = "fast_kernels:fast", **fields: Any) -> KernelSpec:
    return KernelSpec(
        name=name, target=target, **{"op": "packed_linear", "device": "cpu", **fields}
    )


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``install(*specs)`` makes these the only kernels there are."""
    module = ModuleType("fast_kernels")
    module.fast, module.picky = fast, picky  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fast_kernels", module)
    monkeypatch.delenv(dispatch.ENVIRONMENT, raising=False)
    monkeypatch.setattr(dispatch, "_choices", {})

    def add(*specs: KernelSpec) -> None:
        class Plugin:
            @hookimpl
            def tramontane_kernels(self) -> list[KernelSpec]:
                return list(specs)

        manager = PluginManager([Plugin()], discover=False)
        monkeypatch.setattr(dispatch, "plugin_manager", lambda: manager)

    return add


def test_reference_when_there_is_nothing_else(install: Any) -> None:
    install()
    assert dispatch.bind("paged_attention", CPU) is paged_attention


def test_highest_priority_that_can_run(install: Any) -> None:
    install(
        spec("slow", priority=5, target="nowhere:nothing"),
        spec("best", priority=30),
        spec("gpu only", priority=99, device="cuda"),
        spec("exotic", priority=50, requires=("avx9000",)),
    )
    assert dispatch.bind("packed_linear", CPU) is fast
    (choice,) = dispatch.choices()
    assert choice.name == "best"
    assert [str(other) for other in choice.others] == [
        "gpu only (not used: runs on cuda)",
        "exotic (not used: cpu lacks avx9000)",
    ]


def test_kernel_is_asked_whether_it_supports_the_facts(install: Any) -> None:
    install(spec("picky", "fast_kernels:picky", priority=30), spec("fast", priority=20))
    assert dispatch.bind("packed_linear", CPU, format="gguf.q4_k") is picky
    assert dispatch.bind("packed_linear", CPU, format="gguf.q6_k") is fast


def test_broken_kernel_leaves_the_reference(install: Any) -> None:
    install(spec("broken", "no_such_module:kernel"))
    assert dispatch.bind("packed_linear", CPU) is packed_linear
    (choice,) = dispatch.choices()
    assert "no_such_module" in str(choice.others[0].refusal)


def test_environment_forces_the_reference(install: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    install(spec("fast"))
    assert dispatch.bind("packed_linear", CPU) is fast
    monkeypatch.setenv(dispatch.ENVIRONMENT, "reference")
    assert dispatch.bind("packed_linear", CPU) is packed_linear
    monkeypatch.setenv(dispatch.ENVIRONMENT, "auto")
    assert dispatch.bind("packed_linear", CPU) is fast
    monkeypatch.setenv(dispatch.ENVIRONMENT, "fastest")
    with pytest.raises(ConfigError, match="'fastest'; use auto or reference"):
        dispatch.bind("packed_linear", CPU)


def test_unknown_operator(install: Any) -> None:
    install()
    with pytest.raises(ConfigError, match="no operator 'flash'; operators are paged_attention"):
        dispatch.bind("flash", CPU)


def test_candidates_say_why_not(install: Any) -> None:
    install(spec("fast"), spec("gpu", device="cuda", priority=40))
    found = [str(candidate) for candidate in dispatch.candidates("packed_linear", CPU)]
    assert found == ["gpu (not used: runs on cuda)", "fast", "reference"]


def test_features_of_this_cpu() -> None:
    found = features(CPU)
    assert found
    assert all(name == name.lower() and "_" not in name for name in found)
