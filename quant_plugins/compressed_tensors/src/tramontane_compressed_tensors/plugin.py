"""What this distribution declares. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

from tramontane.hooks import QuantizerSpec, hookimpl


@hookimpl
def tramontane_quantizers() -> Iterable[QuantizerSpec]:
    return [
        QuantizerSpec(
            name="compressed-tensors",
            target="tramontane_compressed_tensors.reader:CompressedTensorsReader",
            hf_methods=("compressed-tensors",),
            summary="compressed-tensors checkpoints: integers of 1 to 8 bits, 8-bit floats",
        )
    ]
