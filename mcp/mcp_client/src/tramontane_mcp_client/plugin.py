"""What tramontane-mcp-client provides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tramontane.hooks import ToolSource, hookimpl


@hookimpl
def tramontane_tool_sources(config: Mapping[str, Any]) -> Iterable[ToolSource]:
    servers = config.get("mcp_client_config")
    if servers is None:
        return ()
    # The SDK takes a second to import; only those who use it pay.
    from tramontane_mcp_client.client import McpClient

    client = McpClient(servers)
    client.start()
    return (client.tool_source(),)
