"""``--tool``, ``--mcp-config`` and ``--grammar``: read, refused, asked about, shown."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tramontane import ExecutedToolCall
from tramontane.errors import SourceError
from tramontane_cli import tool_desk
from tramontane_cli.chat import Chat
from tramontane_cli.function_tools import FunctionTool
from tramontane_cli.tool_desk import ToolDesk

MODULE = '''
from __future__ import annotations
from typing import Literal

def weather(city: str, days: int = 1, unit: Literal["C", "F"] = "C") -> str:
    """Forecast for a city.

    Longer words.

    Args:
        city: where
        days: how many
    """
    return f"{city}: {days * 10} {unit}"

def shout(*words: str) -> str: return ""
def strange(thing: Missing) -> str: return ""
async def later(n: int) -> int: return n + 1
def plain(): raise ValueError("inner")
number = 3
'''


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module's name; it lies in the working directory."""
    (tmp_path / "some_tools.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "modules", {**sys.modules})
    return "some_tools"


def test_a_function_is_told_by_its_signature_and_docstring(module: str) -> None:
    for place in (f"{module}:weather", f"{module}.py:weather"):
        tool = FunctionTool.named(place)
        assert tool.schema == {
            "type": "function",
            "function": {
                "name": "weather",
                "description": "Forecast for a city.\n\nLonger words.",
                "parameters": {
                    "type": "object",
                    "properties": {
                        "city": {"type": "string", "description": "where"},
                        "days": {"type": "integer", "default": 1, "description": "how many"},
                        "unit": {"type": "string", "enum": ["C", "F"], "default": "C"},
                    },
                    "required": ["city"],
                    "additionalProperties": False,
                },
            },
        }
        assert tool("weather", {"city": "Nice", "days": "2"}) == "Nice: 20 C"
        with pytest.raises(TypeError, match=r"^days: .*integer.*; unit: .*'C' or 'F'"):
            tool("weather", {"city": "Nice", "days": "many", "unit": "K"})
        with pytest.raises(TypeError, match=r"city: Missing.*town: Unexpected"):
            tool("weather", {"town": "Nice"})


def test_what_a_function_raises_is_its_own(module: str) -> None:
    with pytest.raises(ValueError, match="inner"):
        FunctionTool.named(f"{module}:plain")("plain", {})


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("weather", "write MODULE:FUNCTION"),
        ("some_tools:", "write MODULE:FUNCTION"),
        ("no_such_module_here:f", "ModuleNotFoundError"),
        ("nothing.py:f", "nothing.py cannot be imported: FileNotFoundError"),
        ("some_tools:rain", "some_tools has no 'rain'"),
        ("some_tools:number", "is no function but int"),
        ("some_tools:shout", r"parameter \*words"),
        ("some_tools:strange", "Missing"),
    ],
)
def test_what_cannot_be_a_tool_says_why(cli, fake, module: str, place: str, told: str) -> None:
    with pytest.raises(SourceError, match=told):
        FunctionTool.named(place)
    result = cli("run", "-m", "a/b", "--yes", "--tool", place, "hi")
    assert result.exit_code == 1
    assert not fake.made


def executed(result: str = "42", **fields: Any) -> SimpleNamespace:
    """The chunk that ends a round."""
    run = ExecutedToolCall(round=0, id="c1", name="add", arguments="{}", result=result, **fields)
    delta = SimpleNamespace(content=None, reasoning_content=None)
    return SimpleNamespace(
        choices=[SimpleNamespace(delta=delta, finish_reason=None)],
        usage=None,
        executed_tool_calls=[run],
        tool_messages=[{"role": "assistant"}, {"role": "tool", "content": result}],
    )


def config(path: Path) -> str:
    servers = [{"id": "a", "name": "A", "source": {"type": "Http", "url": "http://127.0.0.1:9"}}]
    path.write_text(json.dumps({"servers": servers, "auto_register_tools": True}), "utf-8")
    return str(path)


def test_tools_reach_runner_and_request(cli, fake, module: str, tmp_path: Path) -> None:
    fake.answers = [["I ask. ", executed(), "42."]]
    given = ("--tool", f"{module}:weather", "--tool", f"{module}:later")
    given = (*given, "--mcp-config", config(tmp_path / "mcp.json"), "--yes")
    result = cli("run", "-m", "a/b", *given, "hi")
    assert result.exit_code == 0, result.output
    (made,) = fake.made
    assert set(made["tool_callbacks"]) == {"weather", "later"}
    assert made["mcp_client_config"].servers[0].id == "a"
    schemas = fake.requests[0].tool_schemas
    assert [tool["function"]["name"] for tool in schemas] == ["weather", "later"]
    assert made["tool_approval"]("add", {"a": 1}) is True
    assert result.stdout == "I ask. \n42.\n"
    assert "← 42" in result.stderr


def test_json_holds_the_calls_and_the_last_turn(cli, fake, module: str) -> None:
    fake.answers = [["I ask.", executed("no", is_error=True), "Sorry."]]
    result = cli("run", "-m", "a/b", "--tool", f"{module}:weather", "--yes", "--json", "hi")
    data = json.loads(result.stdout)
    assert data["content"] == "Sorry."
    (run,) = data["executed_tool_calls"]
    assert (run["name"], run["result"], run["is_error"]) == ("add", "no", True)


def test_a_model_that_goes_on_calling_is_told_of(cli, fake, module: str) -> None:
    fake.answers = [[executed()]]
    fake.finish = "tool_calls"
    result = cli("run", "-m", "a/b", "--tool", f"{module}:weather", "--yes", "hi")
    assert result.exit_code == 1
    assert "goes on calling tools" in result.stderr


def test_nobody_to_ask_is_refused_before_a_model_is_loaded(
    cli, fake, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = config(tmp_path / "mcp.json")
    for given in (("--tool", f"{module}:weather"), ("--mcp-config", file)):
        result = cli("run", "-m", "a/b", *given, "hi")
        assert result.exit_code == 2
        assert "--yes" in result.stderr
    monkeypatch.setenv("MCP_CONFIG_PATH", file)
    assert cli("run", "-m", "a/b", "hi").exit_code == 2
    fake.answers = [["x"]]
    assert cli("run", "-m", "a/b", "--yes", "hi").exit_code == 0
    assert "tool_approval" in fake.made[0]
    assert cli("run", "-m", "a/b", "--raw", "--tool", f"{module}:weather", "hi").exit_code == 2


def test_a_person_is_asked(
    cli, fake, module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tool_desk, "is_terminal", lambda stream: True)
    desk = ToolDesk.from_options([f"{module}:weather"], None, yes=False)
    assert desk is not None
    replies = iter(["n\n", "\n", "", "y\n", "maybe\n", "a\n"])
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(readline=lambda: next(replies)))
    answers = [desk.approve("weather", {"city": "Nice\x1b[2J"}) for _ in range(7)]
    assert answers == [False, False, False, True, False, True, True]
    said = capsys.readouterr().err
    assert said.count('→ weather(city="Nice') == 7
    assert said.count("run it?") == 6
    assert "\x1b[2J" not in said


def test_long_results_are_cut_when_shown(capsys: pytest.CaptureFixture[str]) -> None:
    ToolDesk().show([executed("x" * 5000).executed_tool_calls[0]])
    said = capsys.readouterr().err
    assert said.count("x") == tool_desk.SHOWN_CHARS
    assert "5,000 characters" in said


def test_a_conversation_keeps_the_rounds(fake) -> None:
    fake.answers = [[executed(), "42."], ["Bye."]]
    lines = iter(["17 + 25?", "thanks"])

    def read() -> str:
        for line in lines:
            return line
        raise EOFError

    Chat(fake, "m", {}, desk=ToolDesk(), read=read).talk()
    roles = [message["role"] for message in fake.requests[1].messages]
    assert roles == ["user", "assistant", "tool", "assistant", "user"]


def test_two_functions_of_one_name(cli, fake, module: str) -> None:
    twice = ("--tool", f"{module}:weather") * 2
    result = cli("run", "-m", "a/b", "--yes", *twice, "hi")
    assert (result.exit_code, "one name" in result.stderr) == (1, True)


@pytest.mark.parametrize(
    ("given", "kind", "grammar"),
    [
        ("regex:(a|b):c", "regex", "(a|b):c"),
        ('json_schema:{"type": "integer"}', "json_schema", '{"type": "integer"}'),
        ("lark:start: NAME", "lark", "start: NAME"),
        ("s.json", "json_schema", "{}\n"),
        ("g.lark", "lark", 'start: "a"\n'),
        ("p.regex", "regex", "a|b"),
        ("g.llg", "llguidance", '{"grammars": []}'),
    ],
)
def test_grammars(cli, fake, tmp_path, monkeypatch, given: str, kind: str, grammar: str) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in {
        "s.json": "{}\n",
        "g.lark": 'start: "a"\n',
        "p.regex": "a|b\n",
        "g.llg": '{"grammars": []}',
    }.items():
        Path(name).write_text(text, encoding="utf-8")
    fake.answers = [["x"], ["y"]]
    for raw in ((), ("--raw",)):
        result = cli("run", "-m", "a/b", *raw, "--grammar", given, "hi")
        assert result.exit_code == 0, result.output
    for request in fake.requests:
        assert (request.grammar, request.grammar_type) == (grammar, kind)


@pytest.mark.parametrize(
    ("given", "told"),
    [("nothing.json", "no such file"), ("yaml:a", "regex:"), ("notes.txt", "does not tell")],
)
def test_grammars_that_are_none(cli, fake, tmp_path, monkeypatch, given: str, told: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").touch()
    result = cli("run", "-m", "a/b", "--grammar", given, "hi")
    assert (result.exit_code, told in result.stderr) == (1, True), result.stderr
    assert not fake.made
