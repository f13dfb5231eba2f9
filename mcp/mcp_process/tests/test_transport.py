"""Servers as processes: what they are given, and that none is left behind."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest
from mcp import Client, types

from tramontane.api import McpServerSourcePy
from tramontane.errors import SourceError
from tramontane_mcp_process.transport import ProcessTransport
from tramontane_testkit.mcp_servers import STDIO
from tramontane_testkit.transport import TransportContract

Process = McpServerSourcePy.Process
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="Windows has job objects instead")


class TestProcess(TransportContract):
    transport = "process"

    @pytest.fixture
    def source(self) -> McpServerSourcePy.Process:  # type: ignore[override]
        return Process(STDIO[0], list(STDIO[1:]))


def where(source: McpServerSourcePy.Process) -> dict[str, Any]:
    """What the server says of its process."""

    async def run() -> dict[str, Any]:
        async with Client(ProcessTransport(source).connect(), cache=None) as client:
            (block,) = (await client.call_tool("where")).content
            assert isinstance(block, types.TextContent)
            told: dict[str, Any] = json.loads(block.text)
            return told

    return anyio.run(run)


def gone(pid: int, within_secs: float = 15) -> bool:
    """Whether a process ends in time."""
    try:
        process = psutil.Process(pid)
    except psutil.NoSuchProcess:
        return True
    deadline = time.monotonic() + within_secs
    while time.monotonic() < deadline:
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    return False


def test_directory_and_variables_are_set_beside_what_is_inherited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INHERITED", "yes")
    told = where(Process(STDIO[0], list(STDIO[1:]), work_dir=str(tmp_path), env={"GIVEN": "too"}))
    assert Path(told["cwd"]) == tmp_path
    assert (told["env"]["INHERITED"], told["env"]["GIVEN"]) == ("yes", "too")
    assert gone(told["pid"])


def test_programs_beside_this_python_come_before_those_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if sys.prefix == sys.base_prefix:
        pytest.skip("this Python has no environment of its own")
    (tmp_path / "python").write_text("#!/bin/sh\nexit 3\n", encoding="utf-8")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    told = where(Process("python", list(STDIO[1:])))
    assert gone(told["pid"])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Process("no-such-program", []), "'no-such-program' is no program on PATH"),
        (Process("./no-such-program", []), "no program that can be run"),
        (Process(sys.executable, [], work_dir="/no/such/place"), "work_dir /no/such/place"),
    ],
)
def test_what_cannot_be_run_is_told_before_it_is_tried(source: Any, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        where(source)


def test_a_token_is_refused() -> None:
    with pytest.raises(SourceError, match="env"):
        ProcessTransport(Process("x", []), bearer_token="secret")


def test_the_last_words_of_a_program_are_told() -> None:
    code = "import sys; print('no key', 'in the drawer', file=sys.stderr); sys.exit(1)"
    with pytest.raises(Exception) as caught:
        where(Process(sys.executable, ["-c", code]))
    assert caught.value.__notes__ == ["its standard error ends: no key in the drawer"]


STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"])
open(sys.argv[1] + ".new", "w").write(str(child.pid))
import os; os.rename(sys.argv[1] + ".new", sys.argv[1])
time.sleep(600)
"""
"""Ignores the end of its input and requests to end, and has a child that does so too."""

PARENT = """
import sys, anyio
from tramontane.api import McpServerSourcePy
from tramontane_mcp_process.transport import ProcessTransport

async def main():
    source = McpServerSourcePy.Process(sys.executable, sys.argv[1:])
    async with ProcessTransport(source).connect():
        print("running", flush=True)
        await anyio.sleep_forever()

anyio.run(main)
"""


def appears(path: Path) -> int:
    """The number in a file that somebody is about to write."""
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return int(path.read_text())


@POSIX
def test_a_stubborn_server_and_its_children_end_with_the_connection(tmp_path: Path) -> None:
    note = tmp_path / "pid"

    async def run() -> int:
        async with ProcessTransport(Process(sys.executable, ["-c", STUBBORN, str(note)])).connect():
            return await anyio.to_thread.run_sync(appears, note)

    assert gone(anyio.run(run))


@POSIX
@pytest.mark.parametrize("stubborn", [False, True])
def test_nothing_is_left_when_the_parent_is_killed(tmp_path: Path, stubborn: bool) -> None:
    note = tmp_path / "pid"
    server = ["-c", STUBBORN, str(note)] if stubborn else list(STDIO[1:])
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, *server], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    try:
        assert parent.stdout.readline() == "running\n"
        if stubborn:
            appears(note)
        family = []
        while len(family) < 2 + stubborn:  # the guard, the server and its child
            family = psutil.Process(parent.pid).children(recursive=True)
    finally:
        parent.kill()  # SIGKILL: nothing of it gets to clean up
        parent.communicate()
    assert all(gone(process.pid) for process in family)
