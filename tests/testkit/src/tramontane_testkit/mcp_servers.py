"""An MCP server for tests, written with the official SDK, and ways to serve it.

Run as a program, this file serves it over standard input and output.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import socket
import sys
import threading
import warnings
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import anyio
import uvicorn
import websockets.asyncio.server as ws
from mcp import types
from mcp.server.lowlevel import NotificationOptions, Server
from mcp.server.stdio import stdio_server
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler, ToolsListChanged
from mcp.shared.message import SessionMessage
from mcp.types import jsonrpc_message_adapter
from websockets.exceptions import ConnectionClosed

PAGE = 3
"""Tools of a page of the listing."""

PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5E"
    "rkJggg=="
)
"""A PNG of one pixel, base64."""

Answer = types.CallToolResult
Handler = Callable[[dict[str, Any]], Awaitable[Answer]]


def text(*parts: str, is_error: bool = False) -> Answer:
    """An answer of texts."""
    blocks: list[Any] = [types.TextContent(type="text", text=part) for part in parts]
    return Answer(content=blocks, is_error=is_error)


def _schema(**properties: str) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {name: {"type": kind} for name, kind in properties.items()},
        "required": list(properties),
    }


class SessionServer:
    """What the session script of the contracts talks to."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.cancelled: list[str] = []
        self.running = self.most_running = 0
        self.late = False
        self._bus = InMemorySubscriptionBus()
        self.server: Server[Any] = Server(
            "session",
            version="1.2.3",
            on_list_tools=self._list,
            on_call_tool=self._call,
            on_list_resources=self._resources,
            on_read_resource=self._read,
            on_subscriptions_listen=ListenHandler(self._bus),
        )

    @property
    def options(self) -> Any:
        """What the server says of itself; its list of tools may change."""
        return self.server.create_initialization_options(
            NotificationOptions(tools_changed=True, resources_changed=True)
        )

    def _tools(self) -> list[types.Tool]:
        tools = [
            types.Tool(
                name="add", description="Sum", input_schema=_schema(a="integer", b="integer")
            ),
            types.Tool(name="lines", description="Two texts", input_schema=_schema()),
            types.Tool(
                name="weather",
                description="Structured content alone",
                input_schema=_schema(),
                output_schema=_schema(degrees="number"),
            ),
            types.Tool(
                name="lie",
                description="Structured content against its schema",
                input_schema=_schema(),
                output_schema=_schema(degrees="number"),
            ),
            types.Tool(name="picture", description="An image", input_schema=_schema()),
            types.Tool(name="refuse", description="Says that it failed", input_schema=_schema()),
            types.Tool(name="slow", description="Never answers", input_schema=_schema()),
            types.Tool(name="wait", description="Takes a while", input_schema=_schema(s="number")),
            types.Tool(name="huge", description="Much", input_schema=_schema(size="integer")),
            types.Tool(name="grow", description="Adds a tool", input_schema=_schema()),
            types.Tool(name="where", description="Its process", input_schema=_schema()),
            types.Tool(name="die", description="Ends the process", input_schema=_schema()),
        ]
        if self.late:
            tools.append(types.Tool(name="late", description="New", input_schema=_schema()))
        return tools

    async def _list(
        self, context: Any, params: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        start = int(params.cursor) if params and params.cursor else 0
        tools = self._tools()
        end = start + PAGE
        cursor = str(end) if end < len(tools) else None
        return types.ListToolsResult(tools=tools[start:end], next_cursor=cursor)

    async def _resources(
        self, context: Any, params: types.PaginatedRequestParams | None
    ) -> types.ListResourcesResult:
        uris = ["file:///notes/today.txt", "file:///notes/old/1.txt", "file:///secret.txt"]
        first = not (params and params.cursor)
        return types.ListResourcesResult(
            resources=[
                types.Resource(uri=uri, name=uri.rpartition("/")[2])
                for uri in (uris[:2] if first else uris[2:])
            ],
            next_cursor="2" if first else None,
        )

    async def _read(
        self, context: Any, params: types.ReadResourceRequestParams
    ) -> types.ReadResourceResult:
        uri = str(params.uri)
        return types.ReadResourceResult(
            contents=[types.TextResourceContents(uri=uri, text=f"content of {uri}")]
        )

    async def _call(self, context: Any, params: types.CallToolRequestParams) -> Answer:
        self.calls.append(params.name)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            return await self._answer(context, params.name, params.arguments or {})
        except asyncio.CancelledError:
            self.cancelled.append(params.name)
            raise
        finally:
            self.running -= 1

    async def _answer(self, context: Any, name: str, arguments: dict[str, Any]) -> Answer:
        match name:
            case "add":
                return text(str(arguments["a"] + arguments["b"]))
            case "lines":
                return text("one", "two")
            case "weather":
                return Answer(content=[], structured_content={"degrees": 21.5})
            case "lie":
                return Answer(content=[], structured_content={"degrees": "warm"})
            case "picture":
                return Answer(
                    content=[types.ImageContent(type="image", data=PIXEL, mime_type="image/png")]
                )
            case "refuse":
                return text("no such city", is_error=True)
            case "slow":
                await anyio.sleep_forever()
            case "wait":
                await anyio.sleep(arguments["s"])
                return text("waited")
            case "huge":
                return text("x" * arguments["size"])
            case "grow":
                self.late = True
                await self._bus.publish(ToolsListChanged())
                if context.session.protocol_version < "2026":
                    await context.session.send_tool_list_changed()
                return text("grown")
            case "late":
                return text("better than never")
            case "where":
                told = {"pid": os.getpid(), "cwd": os.getcwd(), "env": dict(os.environ)}
                return text(json.dumps(told))
            case "die":
                os._exit(3)
        return text(f"no tool {name}", is_error=True)


class Served:
    """A server that runs in a thread of this process.

    Attributes:
        url: where.
        drop: ends it, connections and all, without a farewell.
    """

    def __init__(self, url: str, drop: Callable[[], None]) -> None:
        self.url = url
        self.drop = drop


def _swept() -> None:
    """The SDK's servers leave streams open when they are cut off; sweep them up here, lest some
    later test be blamed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def _listening(port: int) -> socket.socket:
    """A socket that takes connections already now, whoever serves them later."""
    listener = socket.create_server(("127.0.0.1", port))
    listener.listen()
    return listener


@contextmanager
def http_server(
    server: SessionServer,
    *,
    port: int = 0,
    json_response: bool = False,
    stateless: bool = False,
    legacy: bool = False,
    require: Mapping[str, str] | None = None,
    broken: bytes | None = None,
) -> Iterator[Served]:
    """Serve over streamable HTTP.

    Args:
        port: 0 for a free one.
        json_response: answer with JSON instead of event streams.
        stateless: without sessions.
        legacy: as servers before 2026, which begin with a handshake and may keep a session.
        require: headers without which a request is refused with 401.
        broken: what to answer to ``tools/call`` instead.
    """
    app = server.server.streamable_http_app(json_response=json_response, stateless_http=stateless)

    async def guarded(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        headers = {k.decode(): v.decode() for k, v in scope["headers"]}
        if any(headers.get(name.lower()) != value for name, value in (require or {}).items()):
            await _reply(send, 401, b"")
            return
        body, more = b"", scope["method"] == "POST"
        while more:
            event = await receive()
            body, more = body + event.get("body", b""), event.get("more_body", False)
        if legacy and b'"server/discover"' in body:
            await _reply(send, 404, b"")
            return
        if broken is not None and b'"tools/call"' in body:
            await _reply(send, 200, broken)
            return
        pending = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Any:
            return pending.pop() if pending else await receive()

        await app(scope, replay, send)

    listener = _listening(port)
    runner = uvicorn.Server(uvicorn.Config(guarded, log_level="critical", ws="none"))
    thread = threading.Thread(target=runner.run, args=([listener],), daemon=True)
    thread.start()

    def drop() -> None:
        runner.should_exit = runner.force_exit = True
        thread.join()
        listener.close()
        _swept()

    try:
        yield Served(f"http://127.0.0.1:{listener.getsockname()[1]}/mcp", drop)
    finally:
        drop()


async def _reply(send: Any, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@contextmanager
def websocket_server(
    server: SessionServer,
    *,
    port: int = 0,
    legacy: bool = False,
    require: Mapping[str, str] | None = None,
    broken: bytes | None = None,
) -> Iterator[Served]:
    """Serve over WebSocket. Arguments as those of `http_server`."""
    listener = _listening(port)
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()
    sockets: set[ws.ServerConnection] = set()

    def check(connection: ws.ServerConnection, request: Any) -> Any:
        if any(request.headers.get(name) != value for name, value in (require or {}).items()):
            return connection.respond(401, "")
        return None

    async def handle(connection: ws.ServerConnection) -> None:
        sockets.add(connection)
        incoming, read = anyio.create_memory_object_stream[SessionMessage | Exception](0)
        write, outgoing = anyio.create_memory_object_stream[SessionMessage](0)

        async def receive() -> None:
            async with incoming:
                async for frame in connection:
                    message = jsonrpc_message_adapter.validate_json(frame, by_name=False)
                    method = getattr(message, "method", None)
                    if legacy and method == "server/discover":
                        error = {"code": types.METHOD_NOT_FOUND, "message": "no such method"}
                        reply = {"jsonrpc": "2.0", "id": getattr(message, "id", 0), "error": error}
                        await connection.send(json.dumps(reply))
                    elif broken is not None and method == "tools/call":
                        await connection.send(broken.decode())
                    else:
                        await incoming.send(SessionMessage(message))

        async def send() -> None:
            with suppress(ConnectionClosed):
                async for item in outgoing:
                    data = item.message.model_dump_json(by_alias=True, exclude_unset=True)
                    await connection.send(data)

        async with incoming, read, write, outgoing, anyio.create_task_group() as tasks:
            tasks.start_soon(send)
            tasks.start_soon(server.server.run, read, write, server.options)
            with suppress(ConnectionClosed):
                await receive()
            tasks.cancel_scope.cancel()

    async def serve() -> None:
        async with ws.serve(
            handle,
            sock=listener,
            process_request=check,
            subprotocols=["mcp"],  # type: ignore[list-item]
            max_size=None,
        ):
            await stop.wait()
            for connection in sockets:
                connection.transport.abort()

    def run() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(serve())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def drop() -> None:
        if thread.is_alive():
            loop.call_soon_threadsafe(stop.set)
        thread.join()
        listener.close()
        _swept()

    try:
        yield Served(f"ws://127.0.0.1:{listener.getsockname()[1]}", drop)
    finally:
        drop()


STDIO = (sys.executable, "-P", __file__)
"""Command that serves over standard input and output, without this package's other imports."""


async def _main() -> None:
    server = SessionServer()
    async with stdio_server() as (read, write):
        await server.server.run(read, write, server.options)


if __name__ == "__main__":
    asyncio.run(_main())
