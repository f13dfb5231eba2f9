"""What this distribution declares. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

from tramontane.hooks import QuantizerSpec, hookimpl


@hookimpl
def tramontane_quantizers() -> Iterable[QuantizerSpec]:
    return [
        QuantizerSpec(
            name="afq",
            target="tramontane_afq.quantizer:AfqQuantizer",
            isq_aliases=("afq2", "afq3", "afq4", "afq6", "afq8"),
            hf_methods=("mlx",),
            summary="affine codes of 2 to 8 bits in groups of columns, as MLX stores them",
        )
    ]
