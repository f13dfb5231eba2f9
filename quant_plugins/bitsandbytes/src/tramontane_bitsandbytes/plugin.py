"""What this distribution declares. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

from tramontane.hooks import QuantizerSpec, hookimpl


@hookimpl
def tramontane_quantizers() -> Iterable[QuantizerSpec]:
    return [
        QuantizerSpec(
            name="bitsandbytes",
            target="tramontane_bitsandbytes.reader:BitsAndBytesReader",
            hf_methods=("bitsandbytes",),
            summary="bitsandbytes checkpoints: NF4 and FP4, nested or not, and int8",
        )
    ]
