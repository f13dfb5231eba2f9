"""What tramontane-mcp-http declares."""

from tramontane_testkit import HooksContract


class TestPlugin(HooksContract):
    plugin = "tramontane_mcp_http.plugin"
    distribution = "tramontane-mcp-http"
