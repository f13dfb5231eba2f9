"""What tramontane-mcp-process provides."""

from __future__ import annotations

from collections.abc import Iterable

from tramontane.hooks import TransportSpec, hookimpl


@hookimpl
def tramontane_transports() -> Iterable[TransportSpec]:
    return (
        TransportSpec(
            name="process",
            config="Process",
            target="tramontane_mcp_process.transport:ProcessTransport",
            summary="MCP servers run as processes, spoken to over standard input and output",
        ),
    )
