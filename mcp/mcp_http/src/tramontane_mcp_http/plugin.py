"""What tramontane-mcp-http provides."""

from __future__ import annotations

from collections.abc import Iterable

from tramontane.hooks import TransportSpec, hookimpl


@hookimpl
def tramontane_transports() -> Iterable[TransportSpec]:
    return (
        TransportSpec(
            name="http",
            config="Http",
            target="tramontane_mcp_http.transport:HttpTransport",
            summary="MCP servers over streamable HTTP",
        ),
    )
