"""What tramontane-mistral declares."""

from tramontane_testkit import HooksContract


class TestPlugin(HooksContract):
    plugin = "tramontane_mistral.plugin"
    distribution = "tramontane-mistral"
