"""What tramontane-mcp-websocket declares."""

from tramontane_testkit import HooksContract


class TestPlugin(HooksContract):
    plugin = "tramontane_mcp_websocket.plugin"
    distribution = "tramontane-mcp-websocket"
