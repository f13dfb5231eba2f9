"""What tramontane-phi declares."""

from tramontane import Architecture
from tramontane.hooks import plugin_manager
from tramontane_testkit import HooksContract


class TestPlugin(HooksContract):
    plugin = "tramontane_phi.plugin"
    distribution = "tramontane-phi"


def test_the_member_of_the_enum_finds_the_architecture() -> None:
    assert plugin_manager().architecture(Architecture.Phi3_5MoE).name == "Phi3.5MoE"
