"""``tramontane plugins``: what is installed, what it provides, and what was refused."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from tramontane_cli.terminal import quiet, table


def plugins(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List plug-ins, what each provides, and those that were refused and why."""
    from tramontane.hooks import plugin_manager

    with quiet("tramontane.hooks"):  # failures are listed below
        manager = plugin_manager()
    infos, failures = manager.plugins(), manager.failures()
    if as_json:
        typer.echo(json.dumps(_as_data(infos, failures), indent=2))
        return
    rows = [(info.name, info.distribution, info.version, _summary(info)) for info in infos]
    table(("plug-in", "distribution", "version", "provides"), rows)
    if failures:
        typer.echo()
        table(
            ("refused", "distribution", "version", "cause"),
            [(f.name, f.distribution, f.version, _cause(f)) for f in failures],
        )


def _summary(info: Any) -> str:
    """``architectures: Llama, SmolLm3; commands`` — specs by kind, then hooks without specs."""
    kinds = [
        f"{kind.replace('_', ' ')}: {', '.join(names)}" for kind, names in info.provides.items()
    ]
    plain = [hook.removeprefix("tramontane_") for hook in info.hooks]
    return "; ".join(
        [*kinds, *(name.replace("_", " ") for name in plain if name not in info.provides)]
    )


def _cause(failure: Any) -> str:
    return f"{type(failure.cause).__name__}: {failure.cause}"


def _as_data(infos: list[Any], failures: list[Any]) -> dict[str, Any]:
    def common(entry: Any) -> dict[str, Any]:
        return {
            "name": entry.name,
            "module": entry.module,
            "distribution": entry.distribution,
            "version": entry.version,
        }

    return {
        "plugins": [
            common(i)
            | {"provides": {k: list(v) for k, v in i.provides.items()}, "hooks": list(i.hooks)}
            for i in infos
        ],
        "failures": [common(f) | {"cause": _cause(f)} for f in failures],
    }
