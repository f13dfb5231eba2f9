"""What tramontane-gemma provides."""

from __future__ import annotations

from collections.abc import Iterable

from tramontane.hooks import ArchitectureSpec, hookimpl


@hookimpl
def tramontane_architectures() -> Iterable[ArchitectureSpec]:
    return (
        ArchitectureSpec(
            name="Gemma",
            target="tramontane_gemma.gemma:Gemma",
            hf_names=("GemmaForCausalLM",),
            gguf_names=("gemma",),
            summary="Gemma 1 and CodeGemma",
        ),
        ArchitectureSpec(
            name="Gemma2",
            target="tramontane_gemma.gemma2:Gemma2",
            hf_names=("Gemma2ForCausalLM",),
            gguf_names=("gemma2",),
            summary="Gemma 2: bounded scores and logits, windows on every second layer",
        ),
        ArchitectureSpec(
            name="Gemma3Text",
            target="tramontane_gemma.gemma3:Gemma3Text",
            hf_names=("Gemma3ForCausalLM",),
            gguf_names=("gemma3",),
            summary="Gemma 3, text only: windows on five layers of six",
        ),
    )
