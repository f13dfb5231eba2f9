"""WebSocket, with servers of today and from before 2026."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import anyio
import pytest
from mcp import Client

from tramontane.api import McpServerSourcePy
from tramontane_mcp_websocket.transport import WebSocketTransport
from tramontane_testkit.mcp_servers import SessionServer, websocket_server
from tramontane_testkit.transport import TransportContract


class _WebSocket(TransportContract):
    transport = "websocket"
    options: ClassVar[dict[str, Any]] = {}

    @pytest.fixture
    def source(self) -> Iterator[McpServerSourcePy.WebSocket]:
        with websocket_server(SessionServer(), **self.options) as served:
            yield McpServerSourcePy.WebSocket(served.url)


class TestNow(_WebSocket):
    """A server that needs no handshake."""


class TestHandshake(_WebSocket):
    options: ClassVar[dict[str, Any]] = {"legacy": True}


def connect(source: McpServerSourcePy.WebSocket, bearer_token: str) -> str | None:
    """Connect once; the protocol version agreed on."""

    async def run() -> str | None:
        transport = WebSocketTransport(source, bearer_token=bearer_token)
        async with Client(transport.connect(), cache=None) as client:
            return client.protocol_version

    return anyio.run(run)


REQUIRED = {"Authorization": "Bearer right", "X-Team": "blue"}


def test_token_and_headers_go_with_the_upgrade() -> None:
    with websocket_server(SessionServer(), require=REQUIRED) as served:
        headers = {"X-Team": "blue", "authorization": "Bearer of something else"}
        assert connect(McpServerSourcePy.WebSocket(served.url, headers=headers), "right")


def test_a_wrong_token_is_told_with_its_status() -> None:
    with websocket_server(SessionServer(), require=REQUIRED) as served:
        source = McpServerSourcePy.WebSocket(served.url, headers={"X-Team": "blue"})
        with pytest.raises(Exception, match="401"):
            connect(source, "wrong")
