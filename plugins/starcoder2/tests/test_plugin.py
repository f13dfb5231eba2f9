"""What tramontane-starcoder2 declares."""

from tramontane_testkit import HooksContract


class TestPlugin(HooksContract):
    plugin = "tramontane_starcoder2.plugin"
    distribution = "tramontane-starcoder2"
