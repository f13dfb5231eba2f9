"""What tramontane-bitsandbytes declares."""

from tramontane_testkit import HooksContract


class TestPlugin(HooksContract):
    plugin = "tramontane_bitsandbytes.plugin"
    distribution = "tramontane-bitsandbytes"
