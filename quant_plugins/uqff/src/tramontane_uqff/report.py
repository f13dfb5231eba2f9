"""``uqff_report.json``: which shards belong together, and what became of each layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from attrs import frozen

from tramontane.errors import CheckpointError
from tramontane.text.json_files import read_json
from tramontane_uqff.layout import REPORT, SUFFIX, VERSION

if TYPE_CHECKING:
    from tramontane_uqff.outgoing import Entry


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


def described(quant: str, shards: Sequence[str], entries: Sequence[Entry]) -> dict[str, Any]:
    """One output for the report."""
    counts: dict[str, int] = {}
    for entry in entries:
        counts[entry.label] = counts.get(entry.label, 0) + 1
    details = [
        {"module": entry.key, "stored": entry.label, "shape": list(entry.shape)}
        for entry in entries
    ]
    return {
        "quant": quant,
        "shards": list(shards),
        "layers": len(entries),
        "actual_counts": counts,
        "fallback_count": 0,
        "layer_details": details,
    }


def merged(directory: Path, output: Mapping[str, Any], *, keep: Sequence[str]) -> dict[str, Any]:
    """The report with ``output`` in it, beside those of the directory whose shards are kept."""
    outputs = [
        other
        for other in (read_json(directory / REPORT) or {}).get("outputs", [])
        if isinstance(other, dict)
        and other.get("quant") != output["quant"]
        and set(other.get("shards", [])) <= set(keep)
    ]
    return {
        "schema": 1,
        "generated_by": {"tool": "tramontane", "version": version("tramontane")},
        "uqff_version": ".".join(map(str, VERSION)),
        "outputs": [*outputs, dict(output)],
    }
