"""The application: global options, our own commands, and those that plug-ins add.

Nothing here imports torch or a plug-in before somebody asks for it, so that ``tramontane --help``
answers at once.

Exit codes: 0 done, 1 the request failed or something is broken, 2 wrong usage, 70 a defect of
ours, 130 interrupted.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from tramontane.errors import TramontaneError
from tramontane_cli.bench import bench
from tramontane_cli.doctor import doctor
from tramontane_cli.plugins import plugins
from tramontane_cli.run import run

EXIT_DEFECT = 70
LOG_LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)


class CommandGroup(TyperGroup):
    """Looks for commands of plug-ins only when a name is asked for that is not one of ours."""

    @cached_property
    def contributed(self) -> dict[str, Any]:
        from tramontane.hooks import plugin_manager

        guests = typer.Typer()
        plugin_manager().add_commands(guests)
        if not (guests.registered_commands or guests.registered_groups):
            return {}
        found = typer.main.get_group(guests).commands
        return {name: found[name] for name in sorted(found) if name not in self.commands}

    def list_commands(self, ctx: Any) -> list[str]:
        return [*super().list_commands(ctx), *self.contributed]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return super().get_command(ctx, cmd_name) or self.contributed.get(cmd_name)

    def main(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:
        """Run, and turn what goes wrong into one message; ``--debug`` keeps the traceback."""
        given = sys.argv[1:] if args is None else args
        try:
            return super().main(args, *rest, **options)
        except TramontaneError as error:
            if "--debug" in given:
                raise
            complain(str(error))
            sys.exit(1)
        # Not foreseen by anybody: a defect, which still deserves a readable line.
        except Exception as error:
            if "--debug" in given:
                raise
            complain(
                f"unexpected {type(error).__name__}: {error}\n"
                f"`tramontane --debug …` shows where it happened"
            )
            sys.exit(EXIT_DEFECT)


def complain(message: str) -> None:
    """Print an error to stderr."""
    typer.secho("error: ", err=True, nl=False, fg=typer.colors.RED, bold=True)
    typer.echo(message, err=True)


def show_version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata

        typer.echo(f"tramontane {metadata.version('tramontane')}")
        raise typer.Exit


app = typer.Typer(
    name="tramontane",
    cls=CommandGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def options(
    verbose: Annotated[
        int, typer.Option("-v", "--verbose", count=True, help="Log more; -vv for everything.")
    ] = 0,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=show_version, is_eager=True),
    ] = False,
) -> None:
    """Run language models on this machine."""
    logging.basicConfig(
        level=LOG_LEVELS[min(verbose, 2)], format="%(levelname)s %(name)s: %(message)s"
    )


app.command()(run)
app.command()(bench)
app.command()(plugins)
app.command()(doctor)


def main() -> None:
    """Entry point of the console script."""
    app()
