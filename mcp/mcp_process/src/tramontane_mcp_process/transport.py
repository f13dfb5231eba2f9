"""A program run for the purpose, spoken to over its standard input and output."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import sysconfig
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from io import FileIO
from pathlib import Path
from typing import Any, TextIO

import anyio
from mcp.client.stdio import StdioServerParameters, stdio_client

from tramontane.api import McpServerSourcePy
from tramontane.errors import SourceError

log = logging.getLogger(__name__)

GUARD = Path(__file__).with_name("guard.py")

KEPT_LINES = 10
"""Of what the program has last written to its standard error, shown with a failure."""

LONGEST_LINE = 500
"""Characters of a line that are kept."""


class ProcessTransport:
    """Runs one server.

    The program inherits this process's environment. What it writes to standard error is logged,
    and shown when the connection fails. It ends with the connection: its input is closed, after
    two seconds it is asked to end, then killed, with everything it has started. When this process
    itself is killed, a guard does that.

    Args:
        source: what to run, where, with which variables.
        bearer_token: must be None: there are no headers here.

    Raises:
        SourceError: a token is given.
    """

    def __init__(
        self, source: McpServerSourcePy.Process, *, bearer_token: str | None = None
    ) -> None:
        if bearer_token is not None:
            raise SourceError(
                "bearer_token has no place in a process's standard input: put it where the "
                "program looks for it, such as env"
            )
        self._source = source
        self._env = os.environ | (source.env or {})

    def _program(self) -> str:
        """The program's path."""
        source = self._source
        if source.work_dir is not None and not Path(source.work_dir).is_dir():
            raise SourceError(f"work_dir {source.work_dir} is no directory")
        command = source.command
        if os.path.dirname(command):
            command = os.path.join(source.work_dir or os.getcwd(), command)
        found = shutil.which(command, path=_search_path(self._env.get("PATH")))
        if found is None:
            raise SourceError(
                f"command {source.command!r} is no program "
                f"{'that can be run' if os.path.dirname(command) else 'on PATH'}: install it, or "
                f"give its whole path"
            )
        return os.path.abspath(found)

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[tuple[Any, Any]]:
        """Start the program.

        Raises:
            SourceError: there is no such program or directory.
            OSError: it cannot be run.
        """
        command = [self._program(), *self._source.args]
        if sys.platform != "win32":
            command = [sys.executable, "-I", "-S", str(GUARD), str(os.getpid()), *command]
        parameters = StdioServerParameters(
            command=command[0], args=command[1:], env=dict(self._env), cwd=self._source.work_dir
        )
        errors = _Stderr(self._source.command)
        try:
            async with errors.pipe() as errlog, stdio_client(parameters, errlog) as streams:
                errlog.close()  # the program has its own by now
                yield streams
        except BaseException as error:
            if errors.lines:
                error.add_note("its standard error ends: " + " | ".join(errors.lines))
            raise


def _search_path(path: str | None) -> str:
    """Where programs are looked for: beside this Python, if it has an environment of its own, then
    along PATH. So servers installed into that environment are found where it is not activated."""
    beside = [sysconfig.get_path("scripts")] if sys.prefix != sys.base_prefix else []
    return os.pathsep.join([*beside, path or os.defpath])


class _Stderr:
    """What a program writes to its standard error: logged, and its end kept."""

    def __init__(self, program: str) -> None:
        self.lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._program = program
        self._partial = b""

    @asynccontextmanager
    async def pipe(self) -> AsyncIterator[TextIO]:
        """The end to write to, read while the block lasts."""
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        with os.fdopen(reader, "rb", buffering=0) as source, os.fdopen(writer, "w") as sink:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._follow, source)
                try:
                    yield sink
                finally:
                    tasks.cancel_scope.cancel()
                    sink.close()
                    self._read(source)

    async def _follow(self, source: FileIO) -> None:
        while True:
            await anyio.wait_readable(source)
            if not self._read(source):
                return

    def _read(self, source: FileIO) -> bool:
        """Take what is there; False at the end."""
        while (data := source.read(65536)) is not None:
            if not data:
                self._note([self._partial])
                return False
            *whole, self._partial = (self._partial + data).split(b"\n")
            self._note(whole)
        return True

    def _note(self, lines: Iterable[bytes]) -> None:
        for line in lines:
            if text := line.decode("utf-8", "replace").rstrip()[:LONGEST_LINE]:
                self.lines.append(text)
                log.info("%s: %s", self._program, text)
