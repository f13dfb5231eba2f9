"""What tramontane-afq declares."""

from tramontane_testkit import HooksContract


class TestPlugin(HooksContract):
    plugin = "tramontane_afq.plugin"
    distribution = "tramontane-afq"
