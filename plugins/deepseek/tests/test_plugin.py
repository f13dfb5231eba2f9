"""What tramontane-deepseek declares."""

from tramontane_testkit import HooksContract


class TestPlugin(HooksContract):
    plugin = "tramontane_deepseek.plugin"
    distribution = "tramontane-deepseek"
