"""The weights of a model that serves: quantized anew, with what its own requests teach."""

from __future__ import annotations

from typing import Any

from tramontane.hooks import PluginManager
from tramontane.loading.in_situ import in_situ_quantizer, requantize, shared_weights
from tramontane.loading.loader import LoadedModel
from tramontane.protocols import InSituSettings
from tramontane.protocols.pipeline import PipelineOptions


class LiveWeights:
    """Not for use while the engine runs; see `tramontane.models.ModelTable.exclusive`.

    Args:
        loaded: the model.
        plugins: where types are looked up.
    """

    def __init__(self, loaded: LoadedModel, plugins: PluginManager) -> None:
        self._model = loaded.model
        self._device = loaded.device
        self._dtype = loaded.dtype
        self._plugins = plugins

    def requantize(self, type_name: str) -> None:
        """Pack every weight that in-situ quantization touches as ``type_name``.

        Raises:
            ValidationError: there is no such type.
            MissingPluginError: its format is not installed.
        """
        settings = InSituSettings(type_name=type_name)
        quantizer = in_situ_quantizer(self._plugins)
        aliases = shared_weights(self._model)
        plan = quantizer.plan(self._model, aliases, settings, self._device)
        requantize(self._model, plan, device=self._device, dtype=self._dtype)


def in_situ_settings(which: Any, options: PipelineOptions) -> InSituSettings | None:
    """What a ``Which`` variant and a runner's settings say about quantizing while loading."""
    if options.in_situ_quant is None:
        return None
    organization = getattr(which, "organization", None)
    return InSituSettings(
        type_name=options.in_situ_quant,
        organization="default" if organization is None else organization.value,
    )
