"""What tramontane-qwen provides."""

from __future__ import annotations

from collections.abc import Iterable

from tramontane.hooks import ArchitectureSpec, hookimpl


@hookimpl
def tramontane_architectures() -> Iterable[ArchitectureSpec]:
    return (
        ArchitectureSpec(
            name="Qwen2",
            target="tramontane_qwen.qwen2:Qwen2",
            hf_names=("Qwen2ForCausalLM",),
            gguf_names=("qwen2",),
            summary="Qwen 2 and 2.5, QwQ: Llama with biased queries, keys and values",
        ),
        ArchitectureSpec(
            name="Qwen3",
            target="tramontane_qwen.qwen3:Qwen3",
            hf_names=("Qwen3ForCausalLM",),
            gguf_names=("qwen3",),
            summary="Qwen 3: normalized queries and keys",
        ),
        ArchitectureSpec(
            name="Qwen3Moe",
            target="tramontane_qwen.qwen3_moe:Qwen3Moe",
            hf_names=("Qwen3MoeForCausalLM",),
            gguf_names=("qwen3moe",),
            summary="Qwen 3 with a mixture of experts",
        ),
    )
