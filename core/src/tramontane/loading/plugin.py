"""Core's own weight file formats, declared like everybody else's. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

from tramontane.hooks.hookspecs import hookimpl
from tramontane.hooks.specs import CheckpointSpec


@hookimpl
def tramontane_checkpoint_formats() -> Iterable[CheckpointSpec]:
    yield CheckpointSpec(
        name="safetensors",
        target="tramontane.loading.tensors:SafetensorsFormat",
        summary="safetensors files, single or sharded, mapped into memory",
        suffixes=(".safetensors",),
    )
    yield CheckpointSpec(
        name="torch",
        target="tramontane.loading.torch_bin:TorchBinFormat",
        summary="PyTorch state dictionaries, read without running pickled code",
        suffixes=(".bin", ".pth", ".pt"),
    )
