"""What tramontane-qwen declares."""

from tramontane_testkit import HooksContract


class TestPlugin(HooksContract):
    plugin = "tramontane_qwen.plugin"
    distribution = "tramontane-qwen"
