"""What this distribution declares. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

from tramontane.hooks import CheckpointSpec, hookimpl


@hookimpl
def tramontane_checkpoint_formats() -> Iterable[CheckpointSpec]:
    return [
        CheckpointSpec(
            name="ggml",
            suffixes=(".ggml",),
            target="tramontane_ggml.checkpoint:GgmlFormat",
            summary="llama models from before GGUF: ggml, ggmf and ggjt, all versions",
        )
    ]
