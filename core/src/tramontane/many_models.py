"""`ManyModels`: the part of a `Runner` that says which models there are, and which are loaded."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from attrs import evolve

from tramontane.api.selector import Selector
from tramontane.errors import ValidationError
from tramontane.hooks import PluginManager
from tramontane.models import ModelStatus, ModelTable
from tramontane.settings import ModelSettings, RunnerSettings, served_selector

if TYPE_CHECKING:
    from tramontane.protocols.pipeline import Pipeline, PipelineOptions, Reserve


class ManyModels:
    """Base of `tramontane.Runner`, which sets the attributes."""

    _models: ModelTable
    _plugins: PluginManager
    _settings: RunnerSettings

    def add_model(
        self,
        alias: str | None = None,
        which: Selector | None = None,
        *,
        load: bool = True,
        **settings: Any,
    ) -> str:
        """Register one more model, while requests to others run.

        Args:
            alias: what requests and listings call it; None for its ``model_id``. Requests may say
                that one too, as long as only one model has it.
            which: the model, a ``Which`` variant.
            load: load it now; else the first request does.
            settings: arguments of the constructor that say how a model is run, such as
                ``max_seqs`` or ``in_situ_quant``. Of those left out, ``chat_template``,
                ``jinja_explicit``, ``num_device_layers``, ``in_situ_quant``, ``anymoe_config`` and
                what is said of speculative decoding have their defaults; the others are those
                that the constructor was given.

        Returns:
            Its registered name.

        Raises:
            ValidationError: the name is taken, or there is no such setting.
            ModelLoadError: the model could not be brought up; it is not registered.
        """
        chosen = self._settings.of_model(settings)
        chosen.check_served(self._plugins)
        selector = served_selector(which, self._plugins)
        canonical_id = selector.canonical_id
        name = canonical_id if alias is None else alias
        loader = self._loader(selector, chosen)
        self._models.add(name, loader, canonical_id=canonical_id, now=load)
        return name

    def list_models(self) -> list[str]:
        """Names of the loaded models: aliases, or ids of those without."""
        return [name for name, status in self._models.statuses() if status == "loaded"]

    def list_models_with_status(self) -> list[tuple[str, ModelStatus]]:
        """``(name, "loaded" | "unloaded" | "reloading")`` of every model; ``status.error`` says why
        the last attempt to load it failed, if it did."""
        return self._models.statuses()

    def list_unloaded_models(self) -> list[str]:
        """Names of the models that are registered but not loaded."""
        return [name for name, status in self._models.statuses() if status == "unloaded"]

    def get_model_status(self, model_id: str) -> ModelStatus | None:
        """One model's status, or None when there is no such model."""
        return self._models.status(model_id) if model_id in self._models else None

    def is_model_loaded(self, model_id: str) -> bool:
        """Whether requests to this model start without loading it first."""
        return self._models.find(model_id).status == "loaded"

    def get_default_model_id(self) -> str | None:
        """The model that serves requests which name none."""
        return self._models.default

    def set_default_model_id(self, model_id: str) -> None:
        """Raises `ValidationError` when that model is not loaded."""
        self._models.set_default(model_id)

    def unload_model(self, model_id: str) -> None:
        """Free a model's memory once its running requests have ended. It stays registered; the
        next request, or `reload_model`, brings it up again."""
        self._models.unload(model_id)

    def reload_model(self, model_id: str) -> None:
        """Load an unloaded model again."""
        self._models.reload(model_id)

    def remove_model(self, model_id: str) -> None:
        """Unload a model and forget it; the last one stays."""
        self._models.remove(model_id)

    def _add_first(
        self, which: Selector | None, models: Mapping[str, Selector | Mapping[str, Any]] | None
    ) -> None:
        """The models that the constructor is given."""
        further = _described(models or {})
        if which is None and further:
            self._settings.refuse_own()
        else:
            selector = served_selector(which, self._plugins)
            loader = self._loader(selector, self._settings)
            self._models.add(selector.canonical_id, loader)
        for alias, description in further.items():
            # Under a budget each would push out the one before.
            now = self._settings.memory_budget_bytes is None or not self._models.statuses()
            self.add_model(alias, **{"load": now, **description})

    def _loader(self, which: Selector, settings: ModelSettings) -> Callable[[Reserve], Pipeline]:
        """What brings this model up, now and at every reload."""
        spec = self._plugins.get("pipelines", which.kind)
        options = settings.pipeline_options(which, self._plugins)
        return partial(_load, self._plugins, spec, which, options)


def _described(models: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Each model as arguments of `Runner.add_model`."""
    if not isinstance(models, Mapping):
        raise ValidationError(f"models must be {{alias: Which variant or mapping}}, not {models!r}")
    described = {}
    for alias, value in models.items():
        described[alias] = {"which": value} if isinstance(value, Selector) else value
        if not isinstance(described[alias], Mapping) or "alias" in described[alias]:
            raise ValidationError(
                f"models[{alias!r}] must be a Which variant, or a mapping of which and settings, "
                f"not {value!r}"
            )
    return described


def _load(
    plugins: PluginManager, spec: Any, which: Any, options: PipelineOptions, reserve: Reserve
) -> Pipeline:
    started = time.perf_counter()
    pipeline: Pipeline = plugins.resolve(spec).load(which, evolve(options, reserve=reserve))
    info = {"model_id": which.canonical_id, "kind": pipeline.kind, **pipeline.stats()}
    plugins.model_loaded(info | {"seconds": time.perf_counter() - started})
    return pipeline
