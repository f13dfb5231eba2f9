"""What tramontane-starcoder2 provides."""

from __future__ import annotations

from collections.abc import Iterable

from tramontane.hooks import ArchitectureSpec, hookimpl


@hookimpl
def tramontane_architectures() -> Iterable[ArchitectureSpec]:
    return (
        ArchitectureSpec(
            name="Starcoder2",
            target="tramontane_starcoder2.starcoder2:Starcoder2",
            hf_names=("Starcoder2ForCausalLM",),
            gguf_names=("starcoder2",),
            summary="StarCoder2",
        ),
    )
