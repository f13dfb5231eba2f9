"""What tramontane-llama declares."""

from tramontane_testkit import HooksContract


class TestPlugin(HooksContract):
    plugin = "tramontane_llama.plugin"
    distribution = "tramontane-llama"
