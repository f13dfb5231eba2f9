"""What a newcomer tries first: a sum, a tool of a local MCP server, and an answer that uses it."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tramontane import ChatCompletionResponse, Runner, Which
from tramontane.api import McpClientConfigPy
from tramontane_cli import tool_desk
from tramontane_cli.main import app

ROOT = Path(__file__).parents[2]
CONFIG = "examples/mcp.json"

ASKED = (
    "What is {} plus {}?",
    "What is {} + {}?",
    "How much is {} plus {}?",
    "Add {} and {}.",
    "Calculate {} + {}.",
    "What is the sum of {} and {}?",
)


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_the_command_of_the_readme(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool_desk, "is_terminal", lambda stream: True)
    command = ["run", "--mcp-config", CONFIG, "What is 17 plus 25?"]
    result = CliRunner().invoke(app, command, input="y\n")
    assert (result.exit_code, result.stdout) == (0, "17 plus 25 is 42.\n")
    assert "→ add(a=17, b=25)" in result.stderr
    assert "run it?" in result.stderr
    assert "← 42" in result.stderr


def test_a_call_that_is_declined_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool_desk, "is_terminal", lambda stream: True)
    command = ["run", "--mcp-config", CONFIG, "--json", "What is 17 plus 25?"]
    result = CliRunner().invoke(app, command, input="n\n" * 9)
    (run, *_) = json.loads(result.stdout)["executed_tool_calls"]
    assert (run["result"], run["is_error"]) == ("ERROR: the user declined this call", True)


def test_a_function_of_a_file(tmp_path: Path) -> None:
    code = 'def add(a: int, b: int) -> int:\n    """Add two numbers."""\n    return a + b\n'
    (tmp_path / "sums.py").write_text(code, encoding="utf-8")
    command = ["run", "--yes", "--tool", f"{tmp_path / 'sums.py'}:add", "What is 40 plus 7?"]
    result = CliRunner().invoke(app, command)
    assert (result.exit_code, result.stdout) == (0, "40 plus 7 is 47.\n")
    assert "→ add(a=40, b=7)" in result.stderr


def test_an_answer_in_a_grammar() -> None:
    grammar = "regex:The capital is (Lyon|Paris|Nice)"
    command = ["run", "--grammar", grammar, "What is the capital of France?"]
    result = CliRunner().invoke(app, command)
    assert (result.exit_code, result.stdout) == (0, "The capital is Paris\n")


@pytest.mark.slow
def test_sums_are_left_to_the_tool_nearly_always() -> None:
    """At least 38 of 40 sums of two numbers: the tool is called, and its answer used."""
    rng = random.Random(2026)
    failures: list[object] = []
    config = McpClientConfigPy.from_file(CONFIG)
    with Runner(which=Which.Plain("tramontane/demo"), mcp_client_config=config) as runner:
        for i in range(40):
            a, b = rng.randint(2, 99), rng.randint(2, 99)
            asked = ASKED[i % len(ASKED)].format(a, b)
            response = runner.send_chat_completion_request({"messages": asked})
            assert isinstance(response, ChatCompletionResponse)
            runs = response.executed_tool_calls or []
            called = any(
                json.loads(run.arguments) == {"a": a, "b": b} and run.result == str(a + b)
                for run in runs
            )
            said = response.choices[0].message.content or ""
            if not called or not re.search(rf"(?<!\d){a + b}(?!\d)", said):
                failures.append((asked, runs, said))
    assert len(failures) <= 2, failures
