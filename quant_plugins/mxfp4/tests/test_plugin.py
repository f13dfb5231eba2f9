"""What tramontane-mxfp4 declares."""

from tramontane_testkit import HooksContract


class TestPlugin(HooksContract):
    plugin = "tramontane_mxfp4.plugin"
    distribution = "tramontane-mxfp4"
