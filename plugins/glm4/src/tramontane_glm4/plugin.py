"""What tramontane-glm4 provides."""

from __future__ import annotations

from collections.abc import Iterable

from tramontane.hooks import ArchitectureSpec, hookimpl


@hookimpl
def tramontane_architectures() -> Iterable[ArchitectureSpec]:
    return (
        ArchitectureSpec(
            name="GLM4",
            target="tramontane_glm4.glm4:Glm4",
            hf_names=("Glm4ForCausalLM",),
            gguf_names=("glm4",),
            summary="GLM-4-0414 and GLM-Z1",
        ),
    )
