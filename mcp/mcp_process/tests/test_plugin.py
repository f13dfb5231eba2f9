"""What tramontane-mcp-process declares."""

from tramontane_testkit import HooksContract


class TestPlugin(HooksContract):
    plugin = "tramontane_mcp_process.plugin"
    distribution = "tramontane-mcp-process"
