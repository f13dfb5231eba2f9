"""What tramontane-gpt-oss declares."""

import pytest

from tramontane import Architecture, Which
from tramontane.hooks import plugin_manager
from tramontane_testkit import HooksContract


class TestPlugin(HooksContract):
    plugin = "tramontane_gpt_oss.plugin"
    distribution = "tramontane-gpt-oss"


@pytest.mark.parametrize("name", [Architecture.GptOss, "GptOss", "gpt-oss"])
def test_every_spelling_of_the_name_finds_the_architecture(name: str) -> None:
    arch = Which.Plain(model_id="x", arch=name).arch
    assert plugin_manager().architecture(str(arch)).hf_names == ("GptOssForCausalLM",)
