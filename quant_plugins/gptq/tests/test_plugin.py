"""What tramontane-gptq declares."""

from tramontane_testkit import HooksContract


class TestPlugin(HooksContract):
    plugin = "tramontane_gptq.plugin"
    distribution = "tramontane-gptq"
