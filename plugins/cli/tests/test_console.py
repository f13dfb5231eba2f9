"""The real process at a real terminal, with a runner that never stops talking."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pexpect = pytest.importorskip("pexpect", reason="needs a POSIX terminal")

PROMPT = r">[^>]*\x1b\[\?25h"
"""The prompt has been drawn and the cursor shown: keys are read from now on."""

TALKER = '''
import itertools, signal, sys, time, types
import tramontane

# Whoever runs the tests in the background has SIGINT ignored, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

class Runner:
    """Counts until it is stopped; what it was asked goes to stderr."""

    def __init__(self, **settings):
        pass

    def send_chat_completion_request(self, request):
        print("ASKED", [m["content"] for m in request.messages], file=sys.stderr, flush=True)
        def stream():
            try:
                for number in itertools.count():
                    delta = types.SimpleNamespace(content=f"{number} ", reasoning_content=None)
                    choice = types.SimpleNamespace(delta=delta, finish_reason=None)
                    yield types.SimpleNamespace(choices=[choice], usage=None)
                    time.sleep(0.001)
            finally:
                print("FREED", file=sys.stderr, flush=True)
        return stream()

    def close(self):
        print("CLOSED", file=sys.stderr, flush=True)

tramontane.__dict__["Runner"] = Runner
from tramontane_cli.main import main
main()
'''


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "talker.py"
    path.write_text(TALKER, encoding="utf-8")
    return path


@pytest.fixture
def console(script: Path, tmp_path: Path) -> Iterator[pexpect.spawn]:
    environment = dict(
        os.environ, XDG_STATE_HOME=str(tmp_path), TERM="xterm", PROMPT_TOOLKIT_NO_CPR="1"
    )
    child = pexpect.spawn(
        sys.executable,
        [str(script), "run", "-m", "some/model"],
        env=environment,
        timeout=30,
        encoding="utf-8",
    )
    yield child
    child.close(force=True)


def test_ctrl_c_stops_the_answer_and_ctrl_d_leaves(console):
    console.expect("/help lists the commands")
    console.expect(PROMPT)
    console.send("count\r")
    console.expect("ASKED")
    console.expect("5 6 7")
    console.sendintr()
    console.expect("FREED")
    console.expect("stopped")
    console.expect(PROMPT)
    console.send("again\r")
    console.expect(r"ASKED \['count', '0 1 2 .*', 'again'\]")
    console.expect("5 6 7")
    console.sendintr()
    console.expect("stopped")
    console.expect(PROMPT)
    console.sendintr()
    console.expect("Ctrl-D or /exit leaves")
    console.expect(PROMPT)
    console.sendeof()
    console.expect("CLOSED")
    console.expect(pexpect.EOF)
    console.close()
    assert console.exitstatus == 0


def test_what_was_typed_comes_back(console, tmp_path):
    console.expect(PROMPT)
    console.send("count\r")
    console.expect("5 6 7")
    console.sendintr()
    console.expect("stopped")
    console.expect(PROMPT)
    console.send("/exit\r")
    console.expect(pexpect.EOF)
    assert "+count" in (tmp_path / "tramontane" / "history").read_text(encoding="utf-8")


@pytest.fixture
def piped(script: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, script, "run", "-m", "some/model", "count"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        process.kill()


def test_an_interrupted_one_shot_answer_ends_with_130(piped):
    assert piped.stdout.read(20).startswith("0 1 2 3")
    piped.send_signal(signal.SIGINT)
    out, err = piped.communicate(timeout=60)
    assert piped.returncode == 130
    assert out.endswith("\n")
    assert "FREED" in err
    assert "CLOSED" in err
    assert "Traceback" not in err


def test_a_reader_that_leaves_ends_it_quietly(piped):
    assert piped.stdout.read(5)
    piped.stdout.close()
    err = piped.stderr.read()
    assert piped.wait(timeout=60) == 1
    assert "CLOSED" in err
    assert "Traceback" not in err
    assert "Exception ignored" not in err


def test_tools_are_asked_about_in_a_conversation(tmp_path: Path) -> None:
    """The demonstration model, a function, and a person who says always."""
    pytest.importorskip("tramontane_demo_model", reason="needs tramontane-demo-model")
    code = 'def add(a: int, b: int) -> int:\n    """Add two numbers."""\n    return a + b\n'
    (tmp_path / "sums.py").write_text(code, encoding="utf-8")
    environment = dict(
        os.environ, XDG_STATE_HOME=str(tmp_path), TERM="xterm", PROMPT_TOOLKIT_NO_CPR="1"
    )
    child = pexpect.spawn(
        sys.executable,
        [
            "-c",
            "from tramontane_cli.main import main; main()",
            "run",
            "--tool",
            f"{tmp_path / 'sums.py'}:add",
        ],
        env=environment,
        timeout=60,
        encoding="utf-8",
    )
    try:
        child.expect(PROMPT)
        child.send("What is 17 plus 25?\r")
        child.expect(r"add\(a=17, b=25\)")
        child.expect("run it\\?")
        child.send("a\r")
        child.expect("17 plus 25 is 42\\.")
        child.expect(PROMPT)
        child.send("What is 30 plus 31?\r")
        child.expect("30 plus 31 is 61\\.")
        assert "run it?" not in child.before
        child.expect(PROMPT)
        child.send("/exit\r")
        child.expect(pexpect.EOF)
    finally:
        child.close(force=True)
