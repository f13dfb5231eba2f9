"""Streamable HTTP: with and without event streams and sessions, of today and from before 2026."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import anyio
import pytest
from mcp import Client

from tramontane.api import McpServerSourcePy
from tramontane_mcp_http.transport import HttpTransport
from tramontane_testkit.mcp_servers import SessionServer, http_server
from tramontane_testkit.transport import TransportContract


class _Http(TransportContract):
    transport = "http"
    options: ClassVar[dict[str, Any]] = {}

    @pytest.fixture
    def source(self) -> Iterator[McpServerSourcePy.Http]:
        with http_server(SessionServer(), **self.options) as served:
            yield McpServerSourcePy.Http(served.url)


class TestEvents(_Http):
    """Answers in event streams."""


class TestJson(_Http):
    options: ClassVar[dict[str, Any]] = {"json_response": True}


class TestSession(_Http):
    """A handshake and a session, whose announcements have a stream of their own."""

    options: ClassVar[dict[str, Any]] = {"legacy": True}


class TestStateless(_Http):
    options: ClassVar[dict[str, Any]] = {"legacy": True, "stateless": True, "json_response": True}
    announces = False


def connect(source: McpServerSourcePy.Http, bearer_token: str | None = None) -> str | None:
    """Connect once; the protocol version agreed on."""

    async def run() -> str | None:
        transport = HttpTransport(source, bearer_token=bearer_token)
        async with Client(transport.connect(), cache=None) as client:
            return client.protocol_version

    return anyio.run(run)


REQUIRED = {"Authorization": "Bearer right", "X-Team": "blue"}


def test_token_and_headers_go_with_every_request() -> None:
    with http_server(SessionServer(), require=REQUIRED) as served:
        headers = {"X-Team": "blue", "authorization": "Bearer of something else"}
        assert connect(McpServerSourcePy.Http(served.url, headers=headers), "right")


def test_a_wrong_token_is_told_with_its_status() -> None:
    with http_server(SessionServer(), require=REQUIRED) as served:
        source = McpServerSourcePy.Http(served.url, headers={"X-Team": "blue"})
        with pytest.raises(Exception) as caught:
            connect(source, "wrong")
    assert caught.value.__notes__ == ["the server answered HTTP 401 Unauthorized"]
