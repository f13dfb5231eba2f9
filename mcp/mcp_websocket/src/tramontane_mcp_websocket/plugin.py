"""What tramontane-mcp-websocket provides."""

from __future__ import annotations

from collections.abc import Iterable

from tramontane.hooks import TransportSpec, hookimpl


@hookimpl
def tramontane_transports() -> Iterable[TransportSpec]:
    return (
        TransportSpec(
            name="websocket",
            config="WebSocket",
            target="tramontane_mcp_websocket.transport:WebSocketTransport",
            summary="MCP servers over WebSocket",
        ),
    )
