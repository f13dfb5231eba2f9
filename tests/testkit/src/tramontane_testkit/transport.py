"""The contract of an MCP transport: one session, the same over each."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any, ClassVar

import anyio
import pytest
from mcp import Client, types

from tramontane.hooks import plugin_manager
from tramontane_testkit.mcp_servers import PAGE, PIXEL

LIMIT_SECS = 60


class TransportContract:
    """Subclass, name it ``Test…``, name the transport and serve `mcp_servers.SessionServer`.

    Attributes:
        transport: registered name.
        announces: whether the server can say by itself that something has changed.
    """

    transport: ClassVar[str]
    announces: ClassVar[bool] = True

    @pytest.fixture
    def source(self) -> Iterator[Any]:
        """The configuration of a server that runs while the fixture lasts."""
        raise NotImplementedError

    @staticmethod
    def session(source: Any, script: Callable[[Client], Awaitable[None]], **options: Any) -> None:
        """Run ``script`` with a connected client of the official SDK."""
        manager = plugin_manager()
        spec = manager.get("transports", type(source).__name__)
        transport = manager.resolve(spec)(source)

        async def run() -> None:
            with anyio.fail_after(LIMIT_SECS):
                async with Client(transport.connect(), cache=None, **options) as client:
                    await script(client)

        anyio.run(run)

    def test_it_is_found_by_the_class_of_the_configuration(self, source: Any) -> None:
        spec = plugin_manager().get("transports", type(source).__name__)
        assert spec.name == self.transport

    def test_a_session(self, source: Any) -> None:
        async def script(client: Client) -> None:
            page = await client.list_tools()
            assert [tool.name for tool in page.tools] == ["add", "lines", "weather"]
            assert len(page.tools) == PAGE
            page = await client.list_tools(cursor=page.next_cursor)
            assert "picture" in [tool.name for tool in page.tools]
            added = await client.call_tool("add", {"a": 17, "b": 25})
            assert added.content == [types.TextContent(type="text", text="42")]
            assert (await client.call_tool("weather")).structured_content == {"degrees": 21.5}
            (picture,) = (await client.call_tool("picture")).content
            assert isinstance(picture, types.ImageContent)
            assert picture.data == PIXEL
            assert (await client.call_tool("refuse")).is_error
            read = await client.read_resource("file:///notes/today.txt")
            assert isinstance(read.contents[0], types.TextResourceContents)

        self.session(source, script)

    def test_an_answer_may_overtake_another(self, source: Any) -> None:
        order: list[str] = []

        async def script(client: Client) -> None:
            async def call(name: str, arguments: dict[str, Any]) -> None:
                await client.call_tool(name, arguments)
                order.append(name)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(call, "wait", {"s": 1})
                tasks.start_soon(call, "add", {"a": 1, "b": 2})

        self.session(source, script)
        assert order == ["add", "wait"]

    def test_a_huge_answer_arrives_whole(self, source: Any) -> None:
        size = 8 << 20

        async def script(client: Client) -> None:
            (block,) = (await client.call_tool("huge", {"size": size})).content
            assert isinstance(block, types.TextContent)
            assert block.text == "x" * size

        self.session(source, script)

    def test_a_change_is_announced(self, source: Any) -> None:
        if not self.announces:
            pytest.skip("this server has no way to speak first")

        async def script(client: Client) -> None:
            async def note(message: Any) -> None:
                if isinstance(message, types.ToolListChangedNotification):
                    told.set()

            told = anyio.Event()
            heard.append(note)
            if client.protocol_version < "2026":
                await client.call_tool("grow")
                await told.wait()
            else:
                async with client.listen(tools_list_changed=True) as events:
                    await client.call_tool("grow")
                    await anext(events)

        heard: list[Callable[[Any], Awaitable[None]]] = []

        async def on_message(message: Any) -> None:
            for note in heard:
                await note(message)

        self.session(source, script, message_handler=on_message)

    def test_leaving_ends_it_also_with_a_call_under_way(self, source: Any) -> None:
        async def script(client: Client) -> None:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(client.call_tool, "slow")
                await client.call_tool("add", {"a": 1, "b": 2})
                tasks.cancel_scope.cancel()

        self.session(source, script)
