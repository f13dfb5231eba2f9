"""What this distribution declares. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

from tramontane.hooks import QuantizerSpec, hookimpl


@hookimpl
def tramontane_quantizers() -> Iterable[QuantizerSpec]:
    return [
        QuantizerSpec(
            name="hqq",
            target="tramontane_hqq.quantizer:HqqQuantizer",
            isq_aliases=("hqq4", "hqq8"),
            hf_methods=("hqq",),
            summary="half-quadratic quantization to 4 or 8 bits; checkpoints of 1 to 8 bits",
        )
    ]
