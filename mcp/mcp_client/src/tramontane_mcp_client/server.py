"""One server: connected, kept connected, its tools known."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import anyio
from attrs import frozen
from mcp import Client, MCPError, types
from mcp.client.subscriptions import SubscriptionLost
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import ValidationError

from tramontane.api import McpServerConfigPy, McpServerSourcePy
from tramontane.api.mcp_config import DEFAULT_HTTP_TIMEOUT_SECS
from tramontane.errors import PluginError
from tramontane_mcp_client.content import ToolResult, resource_text, tool_result
from tramontane_mcp_client.failures import McpError, describe
from tramontane_mcp_client.pages import pages
from tramontane_mcp_client.resources import READER_NAME, READER_PARAMETERS, Patterns
from tramontane_mcp_client.tool_table import Tool
from tramontane_mcp_client.watched import watched

if TYPE_CHECKING:
    from tramontane.protocols import Transport

log = logging.getLogger(__name__)

T = TypeVar("T")

State = Literal["disabled", "connecting", "connected", "waiting", "failed", "closed"]

CONNECT_SECS = 60
"""For a process to start and answer: it may have to be fetched and built first."""

LONGEST_RETRY_SECS = 60
STABLE_SECS = 60
"""A connection that has lasted this long is tried again at once when it ends."""


@frozen(kw_only=True)
class ServerStatus:
    """How one server is doing.

    Attributes:
        id, name: of its configuration.
        transport: ``"http"``, ``"process"``, ``"websocket"``, or another plug-in's.
        state: ``disabled``; ``connecting``; ``connected``; ``waiting`` to try again after an
            error; ``failed``, for good, because of ``error``; ``closed``.
        error: the last one, kept while a new connection is tried; None once it stands.
        attempts: tries since the last good connection.
        tools: registered names of its tools.
        refused: tools that could not be registered, and why.
        server: what the server says it is, with its version.
        protocol: version of the protocol in use.
    """

    id: str
    name: str
    transport: str
    state: State
    error: str | None
    attempts: int
    tools: tuple[str, ...]
    refused: Mapping[str, str]
    server: str | None
    protocol: str | None


class Server:
    """Keeps one server connected while `run` runs; all methods belong to its event loop.

    Args:
        config: the server.
        open_transport: makes the way to it.
        tool_timeout_secs: for one call.
        retry_secs: before the first new try; doubled at each that fails.
        on_change: called when its tools or its state have changed.
    """

    def __init__(
        self,
        config: McpServerConfigPy,
        open_transport: Callable[[], Transport],
        *,
        tool_timeout_secs: float,
        retry_secs: float,
        on_change: Callable[[], None],
    ) -> None:
        self.id = config.id
        self.prefix = config.tool_prefix
        self.tools: tuple[Tool, ...] = ()
        self.resources: tuple[str, ...] = ()
        self.state: State = "connecting" if config.enabled else "disabled"
        self.error: str | None = None
        self.attempts = 0
        self.settled = anyio.Event()
        self._config = config
        self._open_transport = open_transport
        self._tool_timeout_secs = tool_timeout_secs
        self._retry_secs = retry_secs
        self._on_change = on_change
        self._patterns = None if config.resources is None else Patterns(config.resources)
        self._client: Client | None = None
        self._lost = anyio.Event()
        self._changed = anyio.Event()
        self._retry_now = anyio.Event()
        self._life: anyio.CancelScope | None = None
        self._ended = anyio.Event()

    @property
    def connected(self) -> bool:
        """Whether calls go through now."""
        return self._client is not None

    @property
    def identity(self) -> tuple[str | None, str | None]:
        """Name with version, and protocol version, of the connected server."""
        if self._client is None:
            return None, None
        info = self._client.server_info
        name = None if info is None else f"{info.name} {info.version}".strip()
        return name, self._client.protocol_version

    @property
    def _answer_secs(self) -> float | None:
        """How long one exchange may take."""
        limit: float | None = getattr(self._config.source, "timeout_secs", None)
        if limit is None and isinstance(self._config.source, McpServerSourcePy.Http):
            return DEFAULT_HTTP_TIMEOUT_SECS
        return limit

    # Connecting ---------------------------------------------------------------------------

    async def run(self) -> None:
        """Connect, and connect again whenever the connection ends, until cancelled or stopped."""
        try:
            with anyio.CancelScope() as self._life:
                await self._keep_connected()
        finally:
            self.settled.set()
            if self.state not in ("disabled", "failed"):
                self.state = "closed"
            self._ended.set()

    async def stop(self) -> None:
        """End `run`, and wait for its end."""
        if self._life is not None:
            self._life.cancel()
            await self._ended.wait()

    async def _keep_connected(self) -> None:
        delay = self._retry_secs
        while self.state not in ("disabled", "failed"):
            since = anyio.current_time()
            await self._try()
            if self.state == "failed":
                return
            lasted = anyio.current_time() - since
            if lasted >= STABLE_SECS:
                delay = self._retry_secs
            # Spread, lest the clients of a server that comes back arrive all at once.
            with anyio.move_on_after(delay * random.uniform(0.75, 1.25)):
                await self._retry_now.wait()
            self._retry_now = anyio.Event()
            delay = min(delay * 2, LONGEST_RETRY_SECS)

    def reconnect(self) -> None:
        """End the connection, or the wait for the next try."""
        if self._client is not None:
            self._lose(self._client)
        self._retry_now.set()

    def _lose(self, client: Client) -> None:
        """Give a connection up, unless another has taken its place; its session ends soon."""
        if self._client is client:
            self._client, self.state = None, "connecting"
            self._lost.set()

    async def _try(self) -> None:
        """One connection, from its start to its end, which it records."""
        self.state = "connecting"
        self.attempts += 1
        self._lost = anyio.Event()
        try:
            await self._session()
            self.error = "the server ended the connection"
            self.state = "waiting"
        except PluginError as error:
            self.error, self.state = str(error), "failed"
        # Servers, and the ways to them, fail in ways of their own; none may end the others.
        except Exception as error:
            self.error, self.state = describe(error), "waiting"
        finally:
            self._client = None
            self.settled.set()
            self._on_change()
        log.warning("MCP server %s: %s", self.id, self.error)

    async def _session(self) -> None:
        transport = self._open_transport()
        limit = self._answer_secs or CONNECT_SECS
        with anyio.move_on_after(limit) as deadline:
            async with Client(
                watched(transport.connect(), self._lost),
                read_timeout_seconds=self._answer_secs,
                message_handler=self._on_message,
                client_info=types.Implementation(name="tramontane", version=version("tramontane")),
                cache=None,
            ) as client:
                await self._list(client)
                deadline.deadline = math.inf
                self._client, self.state = client, "connected"
                self.error, self.attempts = None, 0
                self.settled.set()
                self._on_change()
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._follow, client)
                    await self._lost.wait()
                    tasks.cancel_scope.cancel()
        if deadline.cancelled_caught:
            raise McpError(f"no connection within {limit:g} seconds")

    # What it has --------------------------------------------------------------------------

    async def _on_message(self, message: types.ServerNotification | Exception) -> None:
        if isinstance(message, Exception):
            self.error = f"the server sent what is no message: {describe(message)}"[:500]
            log.warning("MCP server %s: %s", self.id, self.error)
        elif isinstance(
            message, (types.ToolListChangedNotification, types.ResourceListChangedNotification)
        ):
            self._changed.set()

    async def _follow(self, client: Client) -> None:
        """List anew whenever the server says that something has changed."""
        async with anyio.create_task_group() as tasks:
            if client.protocol_version in MODERN_PROTOCOL_VERSIONS:
                tasks.start_soon(self._subscribe, client)
            while True:
                await self._changed.wait()
                self._changed = anyio.Event()
                try:
                    await self._list(client)
                except (MCPError, ValidationError, McpError) as error:
                    self.error = f"its tools could not be listed again: {describe(error)}"
                    log.warning("MCP server %s: %s", self.id, self.error)
                self._on_change()

    async def _subscribe(self, client: Client) -> None:
        """From 2026 on, changes are told to those who listen."""
        capabilities = client.server_capabilities
        tools = bool(capabilities.tools and capabilities.tools.list_changed)
        resources = bool(
            self._patterns and capabilities.resources and capabilities.resources.list_changed
        )
        delay = self._retry_secs
        while tools or resources:
            try:
                async with client.listen(
                    tools_list_changed=tools, resources_list_changed=resources
                ) as events:
                    delay = self._retry_secs
                    async for _ in events:
                        self._changed.set()
            except MCPError as error:
                if error.code == types.METHOD_NOT_FOUND:
                    return
                log.debug("MCP server %s: not listening: %s", self.id, error)
            except (SubscriptionLost, TimeoutError) as error:
                log.debug("MCP server %s: not listening: %s", self.id, error)
            await anyio.sleep(delay)
            delay = min(delay * 2, LONGEST_RETRY_SECS)
            self._changed.set()  # what was said meanwhile has been missed

    async def _list(self, client: Client) -> None:
        capabilities = client.server_capabilities
        tools: list[Tool] = []
        if capabilities.tools is not None:
            async for page in pages(client.list_tools):
                tools += [self._tool(tool) for tool in page.tools]
        if self._patterns is not None and capabilities.resources is not None:
            resources: list[types.Resource] = []
            async for listing in pages(client.list_resources):
                resources += listing.resources
            self.resources = tuple(
                str(one.uri) for one in resources if self._patterns.permit(str(one.uri))
            )
            description = self._patterns.reader_description(self._config.name, resources)
            tools.append(Tool(READER_NAME, description, READER_PARAMETERS, self._read_resource))
        self.tools = tuple(tools)

    def _tool(self, tool: types.Tool) -> Tool:
        description = tool.description or tool.title or ""
        return Tool(tool.name, description, tool.input_schema, partial(self._call, tool.name))

    # Calls --------------------------------------------------------------------------------

    async def _call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        async def call(client: Client) -> ToolResult:
            return tool_result(await client.call_tool(name, dict(arguments)))

        return await self._bounded(f"tool {name}", call)

    async def _read_resource(self, arguments: Mapping[str, Any]) -> ToolResult:
        uri = arguments.get("uri")
        if not isinstance(uri, str):
            return ToolResult("uri, the URI of the resource, is missing", is_error=True)
        return ToolResult(await self.read_resource(uri))

    async def read_resource(self, uri: str) -> str:
        """Text of a resource.

        Raises:
            McpError: the configuration does not permit it, or the server cannot give it.
        """
        if self._patterns is None or not self._patterns.permit(uri):
            raise McpError(
                f"resource {uri} of {self._config.name} may not be read; what may: "
                f"{self._patterns or 'none'}"
            )

        async def read(client: Client) -> str:
            return resource_text(await client.read_resource(uri))

        return await self._bounded(f"resource {uri}", read)

    async def _bounded(self, what: str, ask: Callable[[Client], Awaitable[T]]) -> T:
        """One exchange, within its time; its failure in our words.

        Raises:
            McpError: the server is away, too slow, or answers wrongly.
        """
        client = self._client
        if client is None:
            why = f": {self.error}" if self.error else ""
            raise McpError(f"MCP server {self._config.name} is not connected ({self.state}){why}")
        limit = min(self._tool_timeout_secs, self._answer_secs or math.inf)
        try:
            with anyio.fail_after(limit):
                return await ask(client)
        except TimeoutError:
            raise McpError(
                f"{what} of {self._config.name} timed out after {limit:g} seconds"
            ) from None
        except MCPError as error:
            if error.code == types.REQUEST_TIMEOUT:
                raise McpError(
                    f"{what} of {self._config.name} timed out after {limit:g} seconds"
                ) from error
            if error.code == types.CONNECTION_CLOSED or "Session terminated" in str(error):
                self._lose(client)
            raise McpError(f"{what} of {self._config.name}: {describe(error)}") from error
        except (ValidationError, RuntimeError) as error:
            why = describe(error).partition("\n")[0]
            raise McpError(
                f"{what} of {self._config.name} answered against the protocol: {why}"
            ) from error

    def status(self, names: tuple[str, ...], refused: Mapping[str, str]) -> ServerStatus:
        """How it is doing. ``names`` and ``refused`` are what its client knows of it."""
        server, protocol = self.identity
        return ServerStatus(
            id=self.id,
            name=self._config.name,
            transport=type(self._config.source).__name__.lower(),
            state=self.state,
            error=self.error,
            attempts=self.attempts,
            tools=names,
            refused=dict(refused),
            server=server,
            protocol=protocol,
        )
