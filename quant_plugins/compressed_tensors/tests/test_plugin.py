"""What tramontane-compressed-tensors declares."""

from tramontane_testkit import HooksContract


class TestPlugin(HooksContract):
    plugin = "tramontane_compressed_tensors.plugin"
    distribution = "tramontane-compressed-tensors"
