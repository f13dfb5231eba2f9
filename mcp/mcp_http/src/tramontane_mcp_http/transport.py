"""Streamable HTTP (MCP specification, "Transports"), as the official SDK speaks it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
from mcp.client.streamable_http import streamable_http_client

from tramontane.api import McpServerSourcePy
from tramontane.api.mcp_config import DEFAULT_HTTP_TIMEOUT_SECS

MAX_MESSAGE_BYTES = 64 << 20
"""Of one answer, or one event in a stream. A server that sends more has lost its way."""


class HttpTransport:
    """Connects to one server.

    Args:
        source: where, with which headers and how long.
        bearer_token: sent as ``Authorization: Bearer ...``; wins over such a header of ``source``.
    """

    def __init__(self, source: McpServerSourcePy.Http, *, bearer_token: str | None = None) -> None:
        self._source = source
        self._headers = httpx2.Headers(source.headers or {})
        if bearer_token is not None:
            self._headers["Authorization"] = f"Bearer {bearer_token}"

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[tuple[Any, Any]]:
        """Open the connection. A session the server has opened is ended with it.

        Raises:
            SourceError: the server refuses who we are or what we ask, or nothing answers.
        """
        # An answer may be an event stream that stays silent for long, so reading has no limit
        # here: whoever sends a request limits how long it waits for its answer.
        limit = self._source.timeout_secs or DEFAULT_HTTP_TIMEOUT_SECS
        refusals: list[str] = []

        async def look_at(response: httpx2.Response) -> None:
            if "text/event-stream" not in response.headers.get("content-type", ""):
                response.stream = _Bounded(response.stream)
            if response.status_code >= 400:
                refusals.append(f"HTTP {response.status_code} {response.reason_phrase}".strip())

        client = httpx2.AsyncClient(
            headers=self._headers,
            timeout=httpx2.Timeout(limit, read=None),
            event_hooks={"response": [look_at]},
        )
        try:
            async with (
                client,
                streamable_http_client(
                    self._source.url, http_client=client, max_sse_event_size=MAX_MESSAGE_BYTES
                ) as streams,
            ):
                yield streams
        except BaseException as error:
            # The SDK replaces most statuses by a fixed sentence; which it was decides what to do.
            if refusals:
                error.add_note(f"the server answered {refusals[-1]}")
            raise


class _Bounded(httpx2.AsyncByteStream):
    """A body that fails when it exceeds `MAX_MESSAGE_BYTES`."""

    def __init__(self, body: Any) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left = MAX_MESSAGE_BYTES
        async for chunk in self._body:
            left -= len(chunk)
            if left < 0:
                raise httpx2.ReadError(f"the answer exceeds {MAX_MESSAGE_BYTES:,} bytes")
            yield chunk

    async def aclose(self) -> None:
        await self._body.aclose()
