"""What tramontane-llama provides."""

from __future__ import annotations

from collections.abc import Iterable

from tramontane.hooks import ArchitectureSpec, hookimpl


@hookimpl
def tramontane_architectures() -> Iterable[ArchitectureSpec]:
    return (
        ArchitectureSpec(
            name="Llama",
            target="tramontane_llama.llama:Llama",
            hf_names=("LlamaForCausalLM",),
            gguf_names=("llama",),
            summary="Llama 1 to 3.x and models of the same shape",
        ),
        ArchitectureSpec(
            name="SmolLm3",
            target="tramontane_llama.smollm3:SmolLm3",
            hf_names=("SmolLM3ForCausalLM",),
            gguf_names=("smollm3",),
            summary="SmolLM3: Llama with position-free layers",
        ),
    )
