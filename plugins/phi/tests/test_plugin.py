"""What tramontane-phi declares."""

from tramontane_testkit import HooksContract


class TestPlugin(HooksContract):
    plugin = "tramontane_phi.plugin"
    distribution = "tramontane-phi"
