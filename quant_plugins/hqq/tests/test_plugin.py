"""What tramontane-hqq declares."""

from tramontane_testkit import HooksContract


class TestPlugin(HooksContract):
    plugin = "tramontane_hqq.plugin"
    distribution = "tramontane-hqq"
