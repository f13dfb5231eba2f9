"""Names: prefixed, made free, refused, and never silently another tool's."""

from __future__ import annotations

from attrs import define

from tramontane_mcp_client.content import ToolResult
from tramontane_mcp_client.tool_table import Tool, ToolTable


async def nothing(arguments: object) -> ToolResult:
    return ToolResult("")


def tools(*names: str) -> tuple[Tool, ...]:
    return tuple(Tool(name, f"does {name}", {"type": "object"}, nothing) for name in names)


@define
class Server:
    id: str
    tools: tuple[Tool, ...]
    prefix: str | None = None
    connected: bool = True


def test_names_carry_the_prefix_and_only_usual_characters() -> None:
    table = ToolTable()
    table.refresh([Server("a", tools("read/file.now"), "fs"), Server("b", tools("add"))])
    assert list(table) == ["fs_read_file_now", "add"]
    assert table["add"]["function"] == {
        "name": "add",
        "description": "does add",
        "parameters": {"type": "object"},
    }
    tool = table.tool("fs_read_file_now")
    assert tool is not None
    assert tool.name == "read/file.now"


def test_a_taken_name_is_prefixed_with_the_server_and_then_refused() -> None:
    table = ToolTable()
    table.refresh([Server("a", tools("add", "b_add")), Server("b", tools("add", "sub", "sub"))])
    assert list(table) == ["add", "b_add", "sub"]
    assert set(table.refused["b"]) == {"add", "sub"}
    assert "tool_prefix" in table.refused["b"]["add"]
    assert "twice" in table.refused["b"]["sub"]


def test_a_name_stays_with_its_tool_while_its_server_is_away() -> None:
    table = ToolTable()
    late, early = Server("late", (), connected=False), Server("early", tools("add"))
    table.refresh([late, early])
    first = table.tool("add")
    late.tools, late.connected = tools("add"), True
    table.refresh([late, early])
    assert list(table) == ["late_add", "add"]
    assert table.tool("add") is first
    early.connected = False
    table.refresh([late, early])
    assert list(table) == ["late_add"]
    assert "add" not in table
    assert table["add"]  # whoever has just read the name may still look it up
    early.tools = ()
    table.refresh([late, early])
    assert table.names_of("early") == ()
