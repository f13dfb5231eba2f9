"""What depends on whether somebody is watching: tables, progress bars, control characters."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

import typer

OnProgress = Callable[[int, int, str], None]
"""``on_progress(done_bytes, total_bytes, name)``, as `Runner` calls it."""

_CONTROL = {code: None for code in (*range(32), 127, *range(128, 160)) if chr(code) not in "\n\t"}


def is_terminal(stream: TextIO) -> bool:
    """Whether a person reads or writes this stream."""
    return stream is not None and not stream.closed and stream.isatty()


def printable(text: str) -> str:
    """``text`` without control characters: a model must not steer the terminal."""
    return text.translate(_CONTROL)


@contextmanager
def quiet(name: str) -> Iterator[None]:
    """Hold back warnings of one logger, whose content the caller shows itself."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows: a drawn table for a person, tab-separated lines for a program."""
    if not is_terminal(sys.stdout):
        for row in (heads, *rows):
            typer.echo("\t".join(cell.replace("\t", " ").replace("\n", " ") for cell in row))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    drawn = Table(*heads, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        drawn.add_row(*map(escape, row))
    Console().print(drawn)


@contextmanager
def load_progress() -> Iterator[OnProgress | None]:
    """Bars on stderr for what `Runner` fetches and loads; None when nobody watches."""
    if not is_terminal(sys.stderr):
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, object] = {}

        def on_progress(done: int, total: int, name: str) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(printable(name), total=None)
            bars.update(tasks[name], completed=done, total=total or None)  # type: ignore[arg-type]

        yield on_progress
