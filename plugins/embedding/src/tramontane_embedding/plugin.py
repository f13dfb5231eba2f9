"""What tramontane-embedding provides."""

from __future__ import annotations

from collections.abc import Iterable

from tramontane.hooks import ArchitectureSpec, hookimpl


@hookimpl
def tramontane_architectures() -> Iterable[ArchitectureSpec]:
    return (
        ArchitectureSpec(
            name="EmbeddingGemma",
            target="tramontane_embedding.embedding_gemma:EmbeddingGemma",
            hf_names=("Gemma3TextModel",),
            gguf_names=("gemma-embedding",),
            kind="embedding",
            summary="EmbeddingGemma: Gemma 3 whose tokens see both ways",
        ),
        ArchitectureSpec(
            name="Qwen3Embedding",
            target="tramontane_embedding.qwen3_embedding:Qwen3Embedding",
            hf_names=("Qwen3ForCausalLM", "Qwen3Model"),
            kind="embedding",
            summary="Qwen3-Embedding: Qwen 3 without a head",
        ),
    )
