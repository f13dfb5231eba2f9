"""`McpClient`: all servers of a configuration, for callers in any thread."""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import logging
import threading
from collections.abc import Coroutine, Mapping
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import anyio
from attrs import asdict

from tramontane.api import McpClientConfigPy, McpServerConfigPy
from tramontane.api.mcp_config import DEFAULT_MAX_CONCURRENT_CALLS, DEFAULT_TOOL_TIMEOUT_SECS
from tramontane.hooks import PluginManager, ToolSource, plugin_manager
from tramontane_mcp_client.content import ToolResult
from tramontane_mcp_client.failures import McpError, McpToolError
from tramontane_mcp_client.server import Server, ServerStatus
from tramontane_mcp_client.tool_table import ToolTable

if TYPE_CHECKING:
    from tramontane.protocols import Transport

log = logging.getLogger(__name__)

SETTLE_SECS = 30
"""How long the first look at the tools waits for servers that have not answered yet."""

RETRY_SECS = 0.5

T = TypeVar("T")


class McpClient:
    """Connects to servers, calls their tools, reads their resources.

    One thread runs one event loop for all of them. It starts with `start`, or with the first call
    that needs it; `close` ends it, and with it every connection and server process.

    Args:
        config: the servers.
        plugins: where the transports are looked up.
        retry_secs: before a lost or failed connection is tried again; doubled at each try, up to
            a minute.
    """

    def __init__(
        self,
        config: McpClientConfigPy,
        plugins: PluginManager | None = None,
        *,
        retry_secs: float = RETRY_SECS,
    ) -> None:
        self._config = config
        self._plugins = plugins or plugin_manager()
        self._table = ToolTable()
        self._settled = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._retry_secs = retry_secs
        self._servers = [self._new_server(server) for server in config.servers]

    def _new_server(self, config: McpServerConfigPy) -> Server:
        return Server(
            config,
            partial(self._open_transport, config),
            tool_timeout_secs=self._config.tool_timeout_secs or DEFAULT_TOOL_TIMEOUT_SECS,
            retry_secs=self._retry_secs,
            on_change=self._refresh,
        )

    # Life ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to connect, and return at once.

        Raises:
            McpError: the client has been closed.
        """
        with self._lock:
            if self._closed:
                raise McpError("the MCP client has been closed")
            if self._thread is not None:
                return
            self._loop = asyncio.new_event_loop()
            self._stop = asyncio.Event()
            self._permits = asyncio.Semaphore(
                self._config.max_concurrent_calls or DEFAULT_MAX_CONCURRENT_CALLS
            )
            # A daemon, because Python waits for other threads before it runs atexit's functions.
            self._thread = threading.Thread(
                target=self._run_loop, name="tramontane-mcp", daemon=True
            )
            self._thread.start()
            atexit.register(self.close)

    def close(self) -> None:
        """End every connection and server process; calls under way fail. Idempotent."""
        with self._lock:
            self._closed = True
            thread, self._thread = self._thread, None
        if thread is None:
            return
        atexit.unregister(self.close)
        self._loop.call_soon_threadsafe(self._stop.set)
        thread.join()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _run_loop(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._serve())
        finally:
            self._settled.set()  # nobody may wait for a loop that has ended

    async def _serve(self) -> None:
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            for server in self._servers:
                tasks.start_soon(server.run)
            tasks.start_soon(self._settle)
            await self._stop.wait()
            tasks.cancel_scope.cancel()

    async def _settle(self) -> None:
        """Register no tool before every server has had its chance: the order of the
        configuration, not of arrival, decides who gets a name that several want."""
        with anyio.move_on_after(SETTLE_SECS):
            for server in self._servers:
                await server.settled.wait()
        self._table.refresh(self._servers)
        self._settled.set()

    def _refresh(self) -> None:
        if self._settled.is_set():
            self._table.refresh(self._servers)

    def _open_transport(self, server: McpServerConfigPy) -> Transport:
        spec = self._plugins.get("transports", type(server.source).__name__)
        transport: Transport = self._plugins.resolve(spec)(
            server.source, bearer_token=server.bearer_token
        )
        return transport

    # Tools --------------------------------------------------------------------------------

    @property
    def tools(self) -> Mapping[str, Mapping[str, Any]]:
        """OpenAI function schemas by registered name: a live view of what can be called now.
        Waits until every server has answered or failed once, but no longer than `SETTLE_SECS`."""
        self.start()
        self._settled.wait()
        return self._table

    def call_tool(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Call a tool by its registered name. At most ``max_concurrent_calls`` run at a time, of
        all servers together; the wait for a turn does not count towards a call's timeout.

        Raises:
            McpError: no such tool, or its server is away, too slow, or answers wrongly.
        """
        available = self.tools
        tool = self._table.tool(name)
        if tool is None:
            raise McpError(f"no MCP tool {name!r}; there are: {', '.join(available) or 'none'}")
        return self._ask(tool.run(arguments))

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """`call_tool` for its text.

        Raises:
            McpToolError: the tool says that it failed.
            McpError: as `call_tool` raises it.
        """
        result = self.call_tool(name, arguments)
        if result.is_error:
            raise McpToolError(result.text or f"{name} failed and gave no reason")
        return result.text

    def read_resource(self, server_id: str, uri: str) -> str:
        """Text of a resource that the server's ``resources`` patterns permit.

        Raises:
            McpError: it is not permitted, or the server cannot give it.
        """
        self.start()
        return self._ask(self._server(server_id).read_resource(uri))

    def _ask(self, exchange: Coroutine[Any, Any, T]) -> T:
        async def within_limit() -> T:
            async with self._permits:
                return await exchange

        try:
            return self._in_loop(within_limit())
        except McpError:
            exchange.close()  # in case its turn never came
            raise

    def _in_loop(self, exchange: Coroutine[Any, Any, T]) -> T:
        self._settled.wait()
        with self._lock:
            if self._closed:
                exchange.close()
                raise McpError("the MCP client has been closed")
            answer = asyncio.run_coroutine_threadsafe(exchange, self._loop)
        try:
            return answer.result()
        except concurrent.futures.CancelledError:
            raise McpError("the MCP client was closed during the call") from None
        except BaseException:
            answer.cancel()  # such as Ctrl-C here: nobody waits for it any more
            raise

    # Servers ------------------------------------------------------------------------------

    def status(self) -> dict[str, ServerStatus]:
        """How each server is doing, by its id."""
        return {
            server.id: server.status(
                self._table.names_of(server.id), self._table.refused.get(server.id, {})
            )
            for server in self._servers
        }

    def add_server(self, config: McpServerConfigPy) -> None:
        """Connect to one more server. Returns when it has answered or failed once, but no later
        than after `SETTLE_SECS`; what came of it, `status` says.

        Raises:
            McpError: there is a server of that id.
        """

        async def add() -> None:
            if any(server.id == config.id for server in self._servers):
                raise McpError(f"there is an MCP server of id {config.id!r} already; remove it")
            server = self._new_server(config)
            self._servers = [*self._servers, server]
            self._tasks.start_soon(server.run)
            with anyio.move_on_after(SETTLE_SECS):
                await server.settled.wait()
            self._refresh()

        self.start()
        self._in_loop(add())

    def remove_server(self, server_id: str) -> None:
        """End a server's connection, or its process, and forget it; calls under way fail.

        Raises:
            McpError: no server of that id.
        """

        async def remove() -> None:
            server = self._server(server_id)
            self._servers = [other for other in self._servers if other is not server]
            await server.stop()
            self._refresh()

        self.start()
        self._in_loop(remove())

    def resources(self) -> dict[str, tuple[str, ...]]:
        """URIs of the resources that each connected server lists and its patterns permit, by its
        id. Servers may give others that they do not list."""
        self.start()
        self._settled.wait()
        return {server.id: server.resources for server in self._servers if server.connected}

    def reconnect(self, server_id: str) -> None:
        """End a server's connection, or its wait for the next try, and connect again now.

        Raises:
            McpError: no server of that id.
        """
        server = self._server(server_id)
        self.start()
        self._loop.call_soon_threadsafe(server.reconnect)

    def _server(self, server_id: str) -> Server:
        for server in self._servers:
            if server.id == server_id:
                return server
        there = ", ".join(server.id for server in self._servers) or "none"
        raise McpError(f"no MCP server of id {server_id!r}; there are: {there}")

    def tool_source(self) -> ToolSource:
        """These servers as a runner takes them. Its ``tools`` are none unless the configuration
        says ``auto_register_tools``."""
        return ToolSource(
            name="mcp",
            tools=_LazyTools(self) if self._config.auto_register_tools else {},
            call=self.call,
            close=self.close,
            status=lambda: {name: asdict(status) for name, status in self.status().items()},
        )


class _LazyTools(Mapping[str, Mapping[str, Any]]):
    """`McpClient.tools`, waited for when somebody looks."""

    def __init__(self, client: McpClient) -> None:
        self._client = client

    def __getitem__(self, name: str) -> Mapping[str, Any]:
        return self._client.tools[name]

    def __iter__(self) -> Any:
        return iter(self._client.tools)

    def __len__(self) -> int:
        return len(self._client.tools)

    def __contains__(self, name: object) -> bool:
        return name in self._client.tools
