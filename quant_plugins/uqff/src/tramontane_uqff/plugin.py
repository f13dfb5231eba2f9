"""What this distribution declares. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

from tramontane.hooks import CheckpointSpec, QuantizerSpec, hookimpl


@hookimpl
def tramontane_checkpoint_formats() -> Iterable[CheckpointSpec]:
    return [
        CheckpointSpec(
            name="uqff",
            suffixes=(".uqff",),
            target="tramontane_uqff.checkpoint:UqffFormat",
            summary="UQFF files: generations 0 and 1 read, version 1.2 written",
        )
    ]


@hookimpl
def tramontane_quantizers() -> Iterable[QuantizerSpec]:
    return [
        QuantizerSpec(
            name="f8q8",
            target="tramontane_uqff.f8q8:F8Q8Quantizer",
            isq_aliases=("f8q8",),
            summary="blocks of 32 bytes with an 8-bit float as scale",
        )
    ]
