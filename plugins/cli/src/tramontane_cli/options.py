"""Options that several commands have: which model, and how it is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str | None,
    typer.Option(
        "-m",
        "--model",
        help="Directory, .gguf or .uqff file, repository:file or hub repository.",
    ),
]
Dtype = Annotated[str, typer.Option(help="auto, bf16, f16 or f32.")]
Isq = Annotated[str | None, typer.Option(help="Quantize while loading, e.g. to Q4K.")]
Topology = Annotated[
    Path | None, typer.Option(help="YAML file: types and devices of single layers.")
]
DeviceLayers = Annotated[
    list[str] | None,
    typer.Option(
        metavar="N|INDEX:N",
        help="Layers on an accelerator, the rest on the CPU; may be repeated.",
    ),
]
CacheType = Annotated[
    str | None, typer.Option(help="KV cache: auto, f32, bf16, f16, f8e4m3 or i8.")
]
Arch = Annotated[str | None, typer.Option(help="Architecture, if not told by config.")]
TokModel = Annotated[
    str | None, typer.Option(help="Where to take the tokenizer from, if not the model.")
]
