"""What tramontane-fp8 declares."""

from tramontane_testkit import HooksContract


class TestPlugin(HooksContract):
    plugin = "tramontane_fp8.plugin"
    distribution = "tramontane-fp8"
