"""What tramontane-granite declares."""

from tramontane_testkit import HooksContract


class TestPlugin(HooksContract):
    plugin = "tramontane_granite.plugin"
    distribution = "tramontane-granite"
