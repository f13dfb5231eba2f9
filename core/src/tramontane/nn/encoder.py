"""A language model read as an encoder: what it makes of each token, without a head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from tramontane.hooks import plugin_manager
from tramontane.nn.attention import SelfAttention
from tramontane.nn.decoder import CausalLM
from tramontane.protocols import Drop, ForwardBatch, LayerCache, Rename, WeightRule


def backbone(name: str) -> type[Any]:
    """The class of another architecture, for a model that is built on it.

    Plug-ins never import each other: what one needs of another it asks the registry for.

    Args:
        name: ours or Hugging Face's.

    Raises:
        MissingPluginError: it is not installed; names what to install.
    """
    plugins = plugin_manager()
    cls: type[Any] = plugins.resolve(plugins.architecture(name))
    return cls


class Encoder(nn.Module):
    """The decoder of a language model, its head left off.

    Checkpoints name its tensors with or without ``model.`` in front.

    Args:
        language_model: a `tramontane.nn.CausalLM`.
        bidirectional: whether every token sees those after it as well. ``cache_specs`` then gives
            a `tramontane.cache.TransientAttention` for each layer.
    """

    def __init__(self, language_model: CausalLM, *, bidirectional: bool = False) -> None:
        super().__init__()
        self.model = language_model.model
        if bidirectional:
            for module in self.model.modules():
                if isinstance(module, SelfAttention):
                    module.see_both_ways()

    def forward(self, batch: ForwardBatch, caches: Sequence[LayerCache]) -> Tensor:
        h: Tensor = self.model(batch, caches)  # [T, hidden]
        return h

    WEIGHTS: ClassVar[Sequence[WeightRule]] = (
        Drop(r"lm_head\.weight"),
        Rename(r"(?!model\.)(.+)", r"model.\1"),
    )
    PARALLEL_PLAN: ClassVar[Mapping[str, str]] = {}
