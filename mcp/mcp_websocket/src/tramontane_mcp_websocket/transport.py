"""JSON-RPC messages in WebSocket text frames, subprotocol ``mcp``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
from mcp.shared.message import SessionMessage
from mcp.types import jsonrpc_message_adapter
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from tramontane.api import McpServerSourcePy

MAX_MESSAGE_BYTES = 64 << 20
"""Of one frame. A server that sends more has lost its way."""

FAREWELL_SECS = 2
"""How long a server may take to answer that the connection ends."""


class WebSocketTransport:
    """Connects to one server.

    Args:
        source: where, with which headers and how long.
        bearer_token: sent as ``Authorization: Bearer ...`` with the upgrade; wins over such a
            header of ``source``.
    """

    def __init__(
        self, source: McpServerSourcePy.WebSocket, *, bearer_token: str | None = None
    ) -> None:
        self._source = source
        headers = dict(source.headers or {})
        if bearer_token is not None:
            headers = {k: v for k, v in headers.items() if k.lower() != "authorization"}
            headers["Authorization"] = f"Bearer {bearer_token}"
        self._headers = headers

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[tuple[Any, Any]]:
        """Open the connection; ping frames are answered while it is open.

        Raises:
            OSError: nothing answers there.
            websockets.exceptions.InvalidStatus: the server refuses the upgrade.
        """
        incoming, read = anyio.create_memory_object_stream[SessionMessage | Exception](0)
        write, outgoing = anyio.create_memory_object_stream[SessionMessage](0)
        async with (
            incoming,
            read,
            write,
            outgoing,
            self._socket() as socket,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(_receive, socket, incoming)
            tasks.start_soon(_send, socket, outgoing)
            try:
                yield read, write
            finally:
                tasks.cancel_scope.cancel()

    @asynccontextmanager
    async def _socket(self) -> AsyncIterator[ClientConnection]:
        """The socket, closed at the end also when that is a cancellation."""
        socket = await connect(
            self._source.url,
            additional_headers=self._headers,
            subprotocols=[Subprotocol("mcp")],
            open_timeout=self._source.timeout_secs,
            close_timeout=FAREWELL_SECS,
            max_size=MAX_MESSAGE_BYTES,
        )
        try:
            yield socket
        finally:
            with anyio.CancelScope(shield=True):
                await socket.close()


async def _receive(socket: ClientConnection, incoming: Any) -> None:
    """Frames to messages. A frame that is no message goes on as the error it gave."""
    async with incoming:
        try:
            async for frame in socket:
                try:
                    message = jsonrpc_message_adapter.validate_json(frame, by_name=False)
                except ValueError as error:
                    await incoming.send(error)
                else:
                    await incoming.send(SessionMessage(message))
        except (ConnectionClosed, anyio.BrokenResourceError, anyio.ClosedResourceError):
            # Closing ``incoming`` tells the session that the connection has ended.
            return


async def _send(socket: ClientConnection, outgoing: Any) -> None:
    """Messages to frames."""
    async with outgoing:
        try:
            async for item in outgoing:
                await socket.send(item.message.model_dump_json(by_alias=True, exclude_unset=True))
        except ConnectionClosed:
            return
