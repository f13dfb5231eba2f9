"""What this distribution declares. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

from tramontane.hooks import QuantizerSpec, hookimpl


@hookimpl
def tramontane_quantizers() -> Iterable[QuantizerSpec]:
    return [
        QuantizerSpec(
            name="gptq",
            target="tramontane_gptq.gptq:GptqReader",
            hf_methods=("gptq",),
            summary="GPTQ checkpoints of 2, 3, 4 and 8 bits",
        ),
        QuantizerSpec(
            name="awq",
            target="tramontane_gptq.awq:AwqReader",
            hf_methods=("awq",),
            summary="AWQ checkpoints of 4 bits",
        ),
    ]
