"""A runner and its MCP servers: configured, used by the model that travels along, ended."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import psutil
import pytest

from tramontane import ChatCompletionResponse, Runner, SourceError, ValidationError, Which
from tramontane.errors import MissingPluginError, TemplateError
from tramontane.hooks import PluginManager
from tramontane.settings import RunnerSettings

SUMS = """
from mcp.server import MCPServer

server = MCPServer("Sums")

@server.tool()
def add(a: int, b: int) -> str:
    "Add two numbers."
    return str(a + b)

server.run()
"""


def servers(*codes: str) -> dict[str, object]:
    """Configuration of a server for each program."""
    listed = [
        {
            "id": f"server{i}",
            "name": f"Server {i}",
            "source": {"type": "Process", "command": sys.executable, "args": ["-c", code]},
            "tool_prefix": None,
        }
        for i, code in enumerate(codes)
    ]
    return {"servers": listed, "auto_register_tools": True}


def test_the_model_uses_the_tool_of_a_server_beside_one_that_fails() -> None:
    demo = Which.Plain(model_id="tramontane/demo")
    config = servers(SUMS, "import sys; sys.exit('no key in the drawer')")
    with Runner(which=demo, mcp_client_config=config) as runner:
        response = runner.send_chat_completion_request(
            {"messages": "What is 17 plus 25?", "temperature": 0.0, "max_tokens": 100}
        )
        assert isinstance(response, ChatCompletionResponse)
        (run,) = response.executed_tool_calls or []
        assert (run.name, json.loads(run.arguments), run.result) == (
            "add",
            {"a": 17, "b": 25},
            "42",
        )
        assert "42" in (response.choices[0].message.content or "")
        status = runner.mcp_status()
        assert status["server0"]["state"] == "connected"
        assert status["server0"]["tools"] == ("add",)
        assert status["server1"]["state"] in ("waiting", "connecting")
        assert "no key in the drawer" in status["server1"]["error"]
        family = psutil.Process().children(recursive=True)
    assert not any(process.is_running() for process in family)


def test_a_model_that_sees_no_tools_talks_without_them(
    model_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    which = Which.Plain(model_id=str(model_dir))
    request = {"messages": "Hello", "max_tokens": 2}
    with Runner(which=which, mcp_client_config=servers(SUMS)) as runner:
        for _ in range(2):
            assert runner.send_chat_completion_request(request)
        told = [r for r in caplog.records if "shows the model no tools" in r.getMessage()]
        assert len(told) == 1
        for asking in (
            {"tool_choice": "required"},
            {"tool_schemas": [{"type": "function", "function": {"name": "f", "parameters": {}}}]},
        ):
            with pytest.raises(TemplateError, match="shows the model none"):
                runner.send_chat_completion_request({**request, **asking})


def test_the_environment_may_name_the_file(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    which = Which.Plain(model_id=str(model_dir))
    path = tmp_path / "mcp.json"
    monkeypatch.setenv("MCP_CONFIG_PATH", str(path))
    with pytest.raises(SourceError, match=r"mcp\.json"):
        Runner(which=which)
    path.write_text("{", encoding="utf-8")
    with pytest.raises(ValidationError, match=r"mcp\.json"):
        Runner(which=which)
    path.write_text(json.dumps(servers(SUMS)), encoding="utf-8")
    with Runner(which=which) as runner:
        assert runner.mcp_status()["server0"]["state"] == "connected"
    monkeypatch.delenv("MCP_CONFIG_PATH")
    with Runner(which=which) as runner:
        assert runner.mcp_status() == {}


def test_without_the_client_the_error_names_it(model_dir: Path) -> None:
    bare = PluginManager(discover=False)
    with pytest.raises(MissingPluginError, match=r"tramontane\[mcp\]"):
        RunnerSettings(mcp_client_config=servers(SUMS)).check_served(bare)
