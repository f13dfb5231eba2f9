"""`McpClient` with a server that answers with nothing but the protocol's own example messages."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.server import ServerConnection, serve

from tramontane.api import McpClientConfigPy, McpServerConfigPy, McpServerSourcePy
from tramontane_mcp_client.client import McpClient
from tramontane_mcp_client.failures import McpError, McpToolError
from tramontane_testkit import data_path

EXAMPLES = "mcp/schema/2026-07-28/examples"
LAST_PAGE = {"resultType": "complete", "ttlMs": 0, "cacheScope": "private"}


def example(kind: str, name: str) -> dict[str, Any]:
    path = Path(data_path(f"{EXAMPLES}/{kind}/{name}.json"))
    loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


class Replay:
    """Answers each method with an example. Set ``call`` to what ``tools/call`` gets."""

    def __init__(self) -> None:
        self.call = example("CallToolResultResponse", "call-tool-result-response")
        self.fixed = {
            "server/discover": example("DiscoverResultResponse", "discover-result-response"),
            "tools/list": example("ListToolsResultResponse", "list-tools-result-response"),
            "resources/list": example(
                "ListResourcesResultResponse", "list-resources-result-response"
            ),
            "resources/read": example(
                "ReadResourceResultResponse", "read-resource-result-response-with-ttl"
            ),
        }
        self.asked: list[dict[str, Any]] = []

    def __call__(self, connection: ServerConnection) -> None:
        for frame in connection:
            request = json.loads(frame)
            self.asked.append(request)
            if "id" not in request:
                continue
            method = request["method"]
            reply = self.call if method == "tools/call" else self.fixed.get(method)
            if reply is None:
                reply = {"error": example("MethodNotFoundError", "prompts-not-supported")}
            if "cursor" in request.get("params", {}):
                listed = method.partition("/")[0]
                reply = {"result": {**LAST_PAGE, listed: []}}
            connection.send(json.dumps(reply | {"jsonrpc": "2.0", "id": request["id"]}))


@pytest.fixture
def replay() -> Iterator[tuple[Replay, McpClient]]:
    answers = Replay()
    with serve(answers, "127.0.0.1", 0, subprotocols=["mcp"]) as server:  # type: ignore[list-item]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.socket.getsockname()[1]
        source = McpServerSourcePy.WebSocket(f"ws://127.0.0.1:{port}")
        config = McpServerConfigPy("ex", "Examples", source, resources=["file:///project/**"])
        with McpClient(McpClientConfigPy([config], tool_timeout_secs=10)) as mcp:
            yield answers, mcp
        server.shutdown()


def test_listings_and_answers(replay: tuple[Replay, McpClient]) -> None:
    answers, mcp = replay
    assert list(mcp.tools) == ["get_weather", "read_resource"]
    status = mcp.status()["ex"]
    assert (status.server, status.protocol) == ("ExampleServer 1.0.0", "2026-07-28")
    listed = answers.fixed["tools/list"]["result"]["tools"][0]
    function = mcp.tools["get_weather"]["function"]
    assert function["parameters"] == listed["inputSchema"]
    assert function["description"] == listed["description"]
    assert "72°F" in mcp.call("get_weather", {"location": "New York"})
    uri = "file:///project/src/main.rs"
    assert uri in mcp.tools["read_resource"]["function"]["description"]
    assert mcp.call("read_resource", {"uri": uri}).startswith("fn main()")
    cursors = [one["params"].get("cursor") for one in answers.asked if "/list" in one["method"]]
    assert "next-page-cursor" in cursors


def test_every_example_of_a_tools_answer(replay: tuple[Replay, McpClient]) -> None:
    answers, mcp = replay
    assert "get_weather" in mcp.tools
    for path in sorted(Path(data_path(f"{EXAMPLES}/CallToolResult")).glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        answers.call = {"result": result}
        if result.get("isError"):
            with pytest.raises(McpToolError, match="Invalid departure date"):
                mcp.call("get_weather", {"location": "x"})
            continue
        told = mcp.call_tool("get_weather", {"location": "x"})
        assert told.text == "\n".join(block["text"] for block in result["content"])
        assert told.structured == result.get("structuredContent")


ERRORS = ("InternalError", "InvalidParamsError", "MethodNotFoundError", "ParseError")


@pytest.mark.parametrize("kind", ERRORS)
def test_every_example_of_an_error(replay: tuple[Replay, McpClient], kind: str) -> None:
    answers, mcp = replay
    assert "get_weather" in mcp.tools
    for path in sorted(Path(data_path(f"{EXAMPLES}/{kind}")).glob("*.json")):
        error = json.loads(path.read_text(encoding="utf-8"))
        answers.call = {"error": error}
        with pytest.raises(McpError) as caught:
            mcp.call("get_weather", {"location": "x"})
        assert error["message"] in str(caught.value)
        assert mcp.status()["ex"].state == "connected"
