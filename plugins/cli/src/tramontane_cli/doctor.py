"""``tramontane doctor``: what this installation consists of, what is wrong, how to mend it."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from tramontane_cli.terminal import is_terminal

MARKS = {"ok": ("ok  ", typer.colors.GREEN), "warn": ("warn", typer.colors.YELLOW)}
MARKS["fail"] = ("FAIL", typer.colors.RED)


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Examine the installation; exit code 1 when something is broken."""
    import sys

    import attrs

    from tramontane_cli.checks import examine

    findings = examine()
    broken = [finding for finding in findings if finding.status == "fail"]
    if as_json:
        data = {"healthy": not broken, "findings": [attrs.asdict(f) for f in findings]}
        typer.echo(json.dumps(data, indent=2))
    else:
        colored = is_terminal(sys.stdout)
        for finding in findings:
            mark, color = MARKS[finding.status]
            typer.secho(mark, fg=color if colored else None, nl=False)
            typer.echo(f"  {finding.topic}: {finding.found}")
            if finding.mend:
                typer.echo(f"      {finding.mend}")
    if broken:
        raise typer.Exit(1)
