"""What tramontane-glm4 declares."""

from tramontane_testkit import HooksContract


class TestPlugin(HooksContract):
    plugin = "tramontane_glm4.plugin"
    distribution = "tramontane-glm4"
