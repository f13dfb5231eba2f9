"""What this distribution declares. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tramontane.hooks import QuantizerSpec, hookimpl


@hookimpl
def tramontane_quantizers() -> Iterable[QuantizerSpec]:
    return [
        QuantizerSpec(
            name="isq",
            target="tramontane_isq.policy:IsqPolicy",
            summary="which weights are packed while loading, with the other quantizers",
        )
    ]


@hookimpl
def tramontane_commands(cli: Any) -> None:
    from tramontane_isq.command import calibrate, quantize

    cli.command()(quantize)
    cli.command()(calibrate)
