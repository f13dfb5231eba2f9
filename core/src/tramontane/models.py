"""The models of one runner: names, aliases, states, and who is using which right now."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from attrs import define

from tramontane.errors import EngineClosedError, ModelNotFoundError, ValidationError

if TYPE_CHECKING:  # protocols import torch, which only loading a model needs
    from tramontane.protocols.pipeline import Pipeline

log = logging.getLogger(__name__)

Status = Literal["loaded", "unloaded", "reloading"]


@define(eq=False)
class Model:
    """One registered model. Every field is guarded by the table's lock.

    Attributes:
        model_id: what requests call it.
        load: brings the model up again, with all the settings it was first loaded with.
        pipeline: the running model, or None while it is not loaded.
        status: ``"loaded"``, ``"unloaded"`` or ``"reloading"``.
        leases: requests that are using the pipeline; an unload waits for them.
        draining: an unload is waiting or at work; nobody new may have the pipeline.
    """

    model_id: str
    load: Callable[[], Pipeline]
    pipeline: Pipeline | None = None
    status: Status = "unloaded"
    leases: int = 0
    draining: bool = False


class Lease:
    """Keeps a model loaded while a request uses it. `release` is idempotent; any thread."""

    def __init__(self, table: ModelTable, model: Model, pipeline: Pipeline) -> None:
        self._table = table
        self._model: Model | None = model
        self.pipeline = pipeline

    def release(self) -> None:
        with self._table.changed:
            if self._model is not None:
                self._model.leases -= 1
                self._model = None
                self._table.changed.notify_all()


class ModelTable:
    """Thread-safe registry. The first model added is the default."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self._models: dict[str, Model] = {}
        self._default: str | None = None
        self._closed = False

    # Names --------------------------------------------------------------------------------

    def add(self, model_id: str, load: Callable[[], Pipeline]) -> None:
        """Load a model and register it under ``model_id``.

        Raises:
            ValidationError: the name is taken.
            ModelLoadError: the model could not be brought up; nothing is registered.
        """
        with self.changed:
            self._check_open()
            if model_id in self._models:
                raise ValidationError(
                    f"a model called {model_id!r} is registered already; remove it first"
                )
            model = self._models[model_id] = Model(model_id, load, status="reloading")
        try:
            self._bring_up(model)
        except BaseException:
            with self.changed:
                self._models.pop(model_id, None)
                self.changed.notify_all()
            raise
        with self.changed:
            self._default = self._default or model_id

    def find(self, model_id: str | None) -> Model:
        """The model of that name; None and ``"default"`` mean the default one.

        Raises:
            ModelNotFoundError: no such model; lists those there are.
        """
        with self.changed:
            name = self._default if model_id in (None, "default") else model_id
            model = self._models.get(name or "")
            if model is None:
                there = ", ".join(self._models) or "none"
                raise ModelNotFoundError(f"model {model_id!r} not found; registered: {there}")
            return model

    def __contains__(self, model_id: str) -> bool:
        with self.changed:
            return model_id in self._models

    def statuses(self) -> list[tuple[str, Status]]:
        """Every model with its status, in the order they were added."""
        with self.changed:
            return [(m.model_id, m.status) for m in self._models.values()]

    @property
    def default(self) -> str | None:
        return self._default

    def set_default(self, model_id: str) -> None:
        """Raises `ValidationError` when the model is not loaded."""
        model = self.find(model_id)
        with self.changed:
            if model.status != "loaded":
                raise ValidationError(
                    f"model {model_id!r} is {model.status}; reload it before making it the default"
                )
            self._default = model.model_id

    # Use ----------------------------------------------------------------------------------

    def lease(self, model_id: str | None) -> Lease:
        """The pipeline of a model, loaded now if it was not; release the lease when done.

        One of several concurrent callers reloads; the others wait for it.
        """
        model = self.find(model_id)
        while True:
            with self.changed:
                self._check_open()
                if model.model_id not in self._models:
                    raise ModelNotFoundError(f"model {model.model_id!r} has been removed")
                if model.pipeline is not None and not model.draining:
                    model.leases += 1
                    return Lease(self, model, model.pipeline)
                if model.status != "unloaded":
                    self.changed.wait()
                    continue
                model.status = "reloading"
            log.info("reloading %s for a request", model.model_id)
            self._bring_up(model)

    @contextmanager
    def using(self, model_id: str | None) -> Iterator[Pipeline]:
        """``with table.using(name) as pipeline``."""
        lease = self.lease(model_id)
        try:
            yield lease.pipeline
        finally:
            lease.release()

    @contextmanager
    def exclusive(self, model_id: str | None) -> Iterator[Pipeline]:
        """The same once the requests that use the model have ended; new ones wait meanwhile."""
        model = self.find(model_id)
        taken = False
        while not taken:
            with self.using(model_id), self.changed:
                # Somebody else may have begun to drain it since the lease was given.
                taken = not model.draining
                model.draining = True
        try:
            with self.changed:
                self.changed.wait_for(lambda: model.leases == 0 or self._closed)
                self._check_open()
                assert model.pipeline is not None
                pipeline = model.pipeline
            yield pipeline
        finally:
            with self.changed:
                model.draining = False
                self.changed.notify_all()

    def peek(self, model_id: str | None) -> Pipeline:
        """The pipeline of a loaded model, without keeping it.

        Raises:
            ValidationError: it is not loaded.
        """
        model = self.find(model_id)
        with self.changed:
            if model.pipeline is None:
                raise ValidationError(
                    f"model {model.model_id!r} is {model.status}; reload it first"
                )
            return model.pipeline

    # States -------------------------------------------------------------------------------

    def reload(self, model_id: str) -> None:
        """Load an unloaded model again.

        Raises:
            ValidationError: it is loaded, or being reloaded by somebody else.
            ModelLoadError: it failed; the model stays unloaded.
        """
        model = self.find(model_id)
        with self.changed:
            self._check_open()
            if model.status != "unloaded":
                raise ValidationError(f"model {model_id!r} is {model.status} already")
            model.status = "reloading"
        self._bring_up(model)

    def unload(self, model_id: str) -> None:
        """Free a model's memory once its running requests have ended; it can be reloaded.

        Raises:
            ValidationError: it is not loaded.
        """
        model = self.find(model_id)
        with self.changed:
            if model.status != "loaded" or model.draining:
                raise ValidationError(f"model {model_id!r} is not loaded, so it cannot be unloaded")
            model.draining = True
        self._take_down(model)

    def remove(self, model_id: str) -> None:
        """Unload a model and forget it.

        Raises:
            ValidationError: it is the last one.
        """
        model = self.find(model_id)
        with self.changed:
            if len(self._models) == 1:
                raise ValidationError(
                    f"{model_id!r} is the last model of this runner and stays; "
                    f"close the runner to free it"
                )
            del self._models[model.model_id]
            self.changed.wait_for(lambda: model.status != "reloading" and not model.draining)
            model.draining = True
        self._take_down(model)

    def close(self) -> None:
        """End every engine; running requests end with `EngineClosedError`. Safe to call twice."""
        with self.changed:
            self._closed = True
            self.changed.wait_for(
                lambda: all(m.status != "reloading" for m in self._models.values())
            )
            pipelines = [m.pipeline for m in self._models.values() if m.pipeline is not None]
            for model in self._models.values():
                model.pipeline, model.status = None, "unloaded"
            self.changed.notify_all()
        for pipeline in pipelines:
            pipeline.close()

    def _check_open(self) -> None:
        if self._closed:
            raise EngineClosedError("this runner has been closed; make a new one")

    def _bring_up(self, model: Model) -> None:
        """Run ``model.load`` without the lock; the caller has set the status to reloading."""
        pipeline: Pipeline | None = None
        try:
            pipeline = model.load()
        finally:
            with self.changed:
                model.pipeline = pipeline
                model.status = "unloaded" if pipeline is None else "loaded"
                self.changed.notify_all()

    def _take_down(self, model: Model) -> None:
        """Wait for the leases of a draining model, then close its pipeline.

        The lock is not held while closing: the engine's thread may need it to end a request.
        """
        with self.changed:
            self.changed.wait_for(lambda: model.leases == 0 or self._closed)
            pipeline, model.pipeline = model.pipeline, None
        try:
            if pipeline is not None:
                pipeline.close()
        finally:
            with self.changed:
                model.status, model.draining = "unloaded", False
                if self._default == model.model_id:
                    loaded = (m.model_id for m in self._models.values() if m.status == "loaded")
                    self._default = next(loaded, next(iter(self._models), None))
                self.changed.notify_all()
