"""What this distribution declares. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

from tramontane.hooks import QuantizerSpec, hookimpl


@hookimpl
def tramontane_quantizers() -> Iterable[QuantizerSpec]:
    return [
        QuantizerSpec(
            name="fp8",
            target="tramontane_fp8.quantizer:Fp8Quantizer",
            isq_aliases=("fp8",),
            hf_methods=("fp8", "fbgemm_fp8"),
            summary="8-bit floats (E4M3) scaled by tensor, channel or block",
        )
    ]
