"""What tramontane-deepseek provides."""

from __future__ import annotations

from collections.abc import Iterable

from tramontane.hooks import ArchitectureSpec, hookimpl


@hookimpl
def tramontane_architectures() -> Iterable[ArchitectureSpec]:
    return (
        ArchitectureSpec(
            name="DeepseekV2",
            target="tramontane_deepseek.deepseek_v2:DeepseekV2",
            hf_names=("DeepseekV2ForCausalLM",),
            gguf_names=("deepseek2",),
            summary="DeepSeek V2: latent attention, experts chosen within groups",
        ),
        ArchitectureSpec(
            name="DeepseekV3",
            target="tramontane_deepseek.deepseek_v3:DeepseekV3",
            hf_names=("DeepseekV3ForCausalLM",),
            summary="DeepSeek V3 and R1: experts balanced by a bias on their choice",
        ),
    )
