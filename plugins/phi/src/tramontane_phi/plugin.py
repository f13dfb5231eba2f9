"""What tramontane-phi provides."""

from __future__ import annotations

from collections.abc import Iterable

from tramontane.hooks import ArchitectureSpec, hookimpl


@hookimpl
def tramontane_architectures() -> Iterable[ArchitectureSpec]:
    return (
        ArchitectureSpec(
            name="Phi2",
            target="tramontane_phi.phi2:Phi2",
            hf_names=("PhiForCausalLM",),
            gguf_names=("phi2",),
            summary="Phi 1, 1.5 and 2: attention and MLP side by side",
        ),
        ArchitectureSpec(
            name="Phi3",
            target="tramontane_phi.phi3:Phi3",
            hf_names=("Phi3ForCausalLM",),
            gguf_names=("phi3",),
            summary="Phi 3, 3.5 and 4, mini models included, with LongRoPE",
        ),
        ArchitectureSpec(
            name="Phi3.5MoE",
            target="tramontane_phi.phi3_5_moe:Phi3_5MoE",
            hf_names=("PhiMoEForCausalLM",),
            gguf_names=("phimoe",),
            summary="Phi 3.5 with a mixture of experts routed by SparseMixer",
        ),
    )
