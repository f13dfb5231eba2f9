"""What tramontane-gemma declares."""

from tramontane_testkit import HooksContract


class TestPlugin(HooksContract):
    plugin = "tramontane_gemma.plugin"
    distribution = "tramontane-gemma"
