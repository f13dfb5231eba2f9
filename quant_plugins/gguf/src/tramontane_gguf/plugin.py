"""What this distribution declares. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

from tramontane.hooks import CheckpointSpec, QuantizerSpec, hookimpl

ISQ_ALIASES = (
    "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q8_1", "q2k", "q3k", "q4k", "q5k", "q6k", "q8k",
    "iq4_nl", "iq4_xs",
)  # fmt: skip


@hookimpl
def tramontane_checkpoint_formats() -> Iterable[CheckpointSpec]:
    return [
        CheckpointSpec(
            name="gguf",
            suffixes=(".gguf",),
            target="tramontane_gguf.checkpoint:GgufFormat",
            summary="GGUF files, versions 1 to 3, whole or split",
        )
    ]


@hookimpl
def tramontane_quantizers() -> Iterable[QuantizerSpec]:
    return [
        QuantizerSpec(
            name="gguf",
            target="tramontane_gguf.quantizer:GgmlQuantizer",
            summary="ggml block types, Q4_0 to IQ4_XS",
            isq_aliases=ISQ_ALIASES,
        )
    ]
