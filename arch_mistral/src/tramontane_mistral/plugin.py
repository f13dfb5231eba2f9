"""What tramontane-mistral provides."""

from __future__ import annotations

from collections.abc import Iterable

from tramontane.hooks import ArchitectureSpec, hookimpl


@hookimpl
def tramontane_architectures() -> Iterable[ArchitectureSpec]:
    return (
        ArchitectureSpec(
            name="Mistral",
            target="tramontane_mistral.mistral:Mistral",
            hf_names=("MistralForCausalLM",),
            summary="Mistral: Llama's shape with an optional sliding window",
        ),
        ArchitectureSpec(
            name="Mixtral",
            target="tramontane_mistral.mixtral:Mixtral",
            hf_names=("MixtralForCausalLM",),
            summary="Mixtral: Mistral with a mixture of experts",
        ),
    )
