"""What tramontane-embedding declares."""

from tramontane.hooks import plugin_manager
from tramontane_testkit import HooksContract


class TestPlugin(HooksContract):
    plugin = "tramontane_embedding.plugin"
    distribution = "tramontane-embedding"


def test_one_class_of_weights_serves_two_kinds_of_model() -> None:
    plugins = plugin_manager()
    assert plugins.architecture("Qwen3ForCausalLM").name == "Qwen3"
    assert plugins.architecture("Qwen3ForCausalLM", "embedding").name == "Qwen3Embedding"
    assert plugins.architecture("Gemma3TextModel").name == "EmbeddingGemma"
