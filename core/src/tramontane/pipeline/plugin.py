"""Core's own pipelines, registered as everybody else's are. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

from tramontane.hooks import PipelineSpec, hookimpl


@hookimpl
def tramontane_pipelines() -> Iterable[PipelineSpec]:
    yield PipelineSpec(
        name="text",
        kind="text",
        target="tramontane.pipeline.text:TextPipeline",
        summary="Chat and completion with a language model.",
    )
    yield PipelineSpec(
        name="embedding",
        kind="embedding",
        target="tramontane.pipeline.embedding:EmbeddingPipeline",
        summary="Texts to vectors.",
    )
