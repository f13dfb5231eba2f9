"""The tools of all servers under the names a model calls them by."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from typing import Any, Protocol

from attrs import frozen

from tramontane_mcp_client.content import ToolResult

log = logging.getLogger(__name__)

UNUSUAL = re.compile(r"[^A-Za-z0-9_-]")
"""Characters that chat templates and grammars do not expect in a name."""


@frozen
class Tool:
    """One tool.

    Attributes:
        name: what its server calls it.
        description: for the model.
        parameters: JSON schema of its arguments, whole.
        run: calls it.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    run: Callable[[Mapping[str, Any]], Coroutine[Any, Any, ToolResult]]

    def schema(self, name: str) -> dict[str, Any]:
        """As an OpenAI function schema."""
        function = {"name": name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": function}


class Provider(Protocol):
    """What the table asks of a server."""

    id: str
    prefix: str | None
    tools: tuple[Tool, ...]

    @property
    def connected(self) -> bool: ...


class ToolTable(Mapping[str, Mapping[str, Any]]):
    """Registered name → function schema, of the servers that are connected now.

    A tool is registered as ``<prefix>_<name>``, or as ``<name>`` where its server has no prefix.
    Where that name belongs to another tool, the later server's is registered as
    ``<server id>_<name>``, and refused where that is taken too. A name once given stays with its
    tool, also while its server is away, until the server no longer lists it.

    Filled in one thread, read in any: a reader sees one state or the next, and what it has seen
    the name of it can still look up.
    """

    def __init__(self) -> None:
        self._names: dict[str, tuple[str, str]] = {}
        self._known: dict[str, tuple[Tool, dict[str, Any]]] = {}
        self._offered: tuple[str, ...] = ()
        self.refused: dict[str, dict[str, str]] = {}

    def __getitem__(self, name: str) -> Mapping[str, Any]:
        return self._known[name][1]

    def __iter__(self) -> Iterator[str]:
        return iter(self._offered)

    def __len__(self) -> int:
        return len(self._offered)

    def __contains__(self, name: object) -> bool:
        return name in self._offered

    def tool(self, name: str) -> Tool | None:
        """The tool of that name, also one whose server is away."""
        known = self._known.get(name)
        return known[0] if known else None

    def names_of(self, server_id: str) -> tuple[str, ...]:
        """Registered names of a server's tools."""
        return tuple(name for name, (owner, _) in self._names.items() if owner == server_id)

    def refresh(self, servers: Iterable[Provider]) -> None:
        """Register what the servers list now, in their order."""
        servers = list(servers)
        present = {(server.id, tool.name) for server in servers for tool in server.tools}
        names = {name: owner for name, owner in self._names.items() if owner in present}
        given = {owner: name for name, owner in names.items()}
        refused: dict[str, dict[str, str]] = {server.id: {} for server in servers}
        known, offered = {}, []
        for server in servers:
            seen: set[str] = set()
            for tool in server.tools:
                if tool.name in seen:
                    refused[server.id][tool.name] = "the server lists it twice"
                    continue
                seen.add(tool.name)
                owner = (server.id, tool.name)
                name = given.get(owner) or _free_name(server, tool.name, names)
                if name is None:
                    wanted = _names(server, tool.name)
                    refused[server.id][tool.name] = (
                        f"{' and '.join(wanted)} belong to other tools; give the server a "
                        f"tool_prefix of its own"
                    )
                    continue
                names[name] = owner
                known[name] = (tool, tool.schema(name))
                if server.connected:
                    offered.append(name)
        for server_id, tools in refused.items():
            for tool_name, why in tools.items():
                if tool_name not in self.refused.get(server_id, {}):
                    log.warning("MCP server %s: tool %s is refused: %s", server_id, tool_name, why)
        self._known = {**self._known, **known}
        self._names, self.refused, self._offered = names, refused, tuple(offered)


def _names(server: Provider, tool: str) -> list[str]:
    """What a tool may be called, best first."""
    first = tool if server.prefix is None else f"{server.prefix}_{tool}"
    return list(dict.fromkeys(UNUSUAL.sub("_", name) for name in (first, f"{server.id}_{tool}")))


def _free_name(server: Provider, tool: str, taken: Mapping[str, Any]) -> str | None:
    return next((name for name in _names(server, tool) if name not in taken), None)
