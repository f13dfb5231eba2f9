"""``uqff_report.json``: which shards belong together, and what became of each layer."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from attrs import frozen

from tramontane.errors import CheckpointError
from tramontane.text.json_files import read_json
from tramontane_uqff.layout import REPORT, SUFFIX


@frozen
class Output:
    """One set of shards.

    Attributes:
        quant: type it was made as, lower case.
        shards: file names in order.
    """

    quant: str
    shards: tuple[str, ...]


def read_report(directory: Path) -> list[Output]:
    """The sets of shards of a directory; empty where nothing reports them.

    Raises:
        CheckpointError: the report contradicts itself.
    """
    path = directory / REPORT
    data = read_json(path)
    if data is None:
        return []
    outputs = data.get("outputs")
    if not isinstance(outputs, list) or not outputs:
        raise CheckpointError(f"{path} has no outputs; fetch it again, or remove it")
    found = [_output(path, output) for output in outputs]
    quants = [output.quant for output in found]
    shards = [shard for output in found for shard in output.shards]
    for what, names in (("type", quants), ("shard", shards)):
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise CheckpointError(f"{path} has {what} {twice!r} twice")
    return found


def _output(path: Path, data: Any) -> Output:
    quant = data.get("quant") if isinstance(data, dict) else None
    shards = data.get("shards") if isinstance(data, dict) else None
    if not isinstance(quant, str) or not isinstance(shards, list) or not shards:
        raise CheckpointError(f"{path}: an output lacks quant or shards")
    for shard in shards:
        if not isinstance(shard, str) or PurePosixPath(shard).name != shard or "\\" in shard:
            raise CheckpointError(f"{path} names shard {shard!r}, which is no file beside it")
        if not shard.endswith(SUFFIX):
            raise CheckpointError(f"{path} names shard {shard!r}, which is no {SUFFIX} file")
    return Output(quant.lower(), tuple(shards))
