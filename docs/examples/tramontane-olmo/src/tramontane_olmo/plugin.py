"""What tramontane-olmo provides."""

from __future__ import annotations

from collections.abc import Iterable

from tramontane.hooks import ArchitectureSpec, hookimpl


@hookimpl
def tramontane_architectures() -> Iterable[ArchitectureSpec]:
    return (
        ArchitectureSpec(
            name="Olmo",
            target="tramontane_olmo.olmo:Olmo",
            hf_names=("OlmoForCausalLM",),
            summary="OLMo 1",
        ),
    )
