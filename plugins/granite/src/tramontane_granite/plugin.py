"""What tramontane-granite provides."""

from __future__ import annotations

from collections.abc import Iterable

from tramontane.hooks import ArchitectureSpec, hookimpl


@hookimpl
def tramontane_architectures() -> Iterable[ArchitectureSpec]:
    return (
        ArchitectureSpec(
            name="GraniteMoeHybrid",
            target="tramontane_granite.granite_moe_hybrid:GraniteMoeHybrid",
            hf_names=("GraniteMoeHybridForCausalLM",),
            gguf_names=("granitehybrid", "granite", "granitemoe"),
            summary="Granite 4: Mamba-2 and attention layers, dense or with experts",
        ),
    )
