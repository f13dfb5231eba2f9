"""What this distribution declares. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

from tramontane.hooks import QuantizerSpec, hookimpl


@hookimpl
def tramontane_quantizers() -> Iterable[QuantizerSpec]:
    return [
        QuantizerSpec(
            name="mxfp4",
            target="tramontane_mxfp4.quantizer:Mxfp4Quantizer",
            isq_aliases=("mxfp4",),
            hf_methods=("mxfp4",),
            summary="4-bit floats in blocks of 32 with a shared exponent",
        )
    ]
