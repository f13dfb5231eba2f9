"""`ModelTable`: names, states and memory of a runner's models."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tramontane.errors import ModelLoadError, ModelNotFoundError, ValidationError
from tramontane.models.idle import IdleWatch
from tramontane.models.model import Lease, Model, ModelStatus
from tramontane.models.residents import Residents, held

if TYPE_CHECKING:
    from tramontane.protocols.pipeline import Pipeline, Reserve

log = logging.getLogger(__name__)

DEFAULT = "default"
"""What requests call the default model; no model's own name."""


class ModelTable:
    """Thread-safe registry. The first model added is the default.

    Args:
        budget_bytes: weights and caches of all models together; None for no limit.
        idle_secs: how long a model may lie unused before it is unloaded; None for ever.
        clock: seconds, for both.

    Attributes:
        residents: those of the models that hold memory.
        changed: the lock of every model, told of each change.
    """

    def __init__(
        self,
        *,
        budget_bytes: int | None = None,
        idle_secs: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.residents = Residents(budget_bytes, clock)
        self.changed = self.residents.changed
        self._models: dict[str, Model] = {}
        self._default: str | None = None
        self._watch = None if idle_secs is None else IdleWatch(self.residents, idle_secs)

    # Names --------------------------------------------------------------------------------

    def add(
        self,
        model_id: str,
        load: Callable[[Reserve], Pipeline],
        *,
        canonical_id: str | None = None,
        now: bool = True,
    ) -> None:
        """Register a model, and load it unless ``now`` is False.

        Args:
            model_id: its name.
            load: brings it up. Is given a function to announce how much memory it takes.
            canonical_id: another name of it; several models may share that.

        Raises:
            ValidationError: the name is taken.
            ModelLoadError: the model could not be brought up; it is not registered.
        """
        model = Model(model_id, canonical_id or model_id, load)
        with self.changed:
            self.residents.check_open()
            if not model_id or model_id == DEFAULT:
                raise ValidationError(f"a model cannot be called {model_id!r}: give another alias")
            for other in self._models.values():
                if model_id in (other.model_id, other.canonical_id):
                    raise ValidationError(
                        f"{model_id!r} is a name of the model {other.model_id!r} already: give "
                        f"this one another alias, or remove that one first"
                    )
            self._models[model_id] = model
            self._default = self._default or model_id
            model.status = "reloading" if now else "unloaded"
        if not now:
            return
        try:
            self.residents.bring_up(model)
        except BaseException:
            with self.changed:
                self._forget(model)
            raise

    def find(self, model_id: str | None) -> Model:
        """The model of that name; None and ``"default"`` mean the default one.

        Raises:
            ModelNotFoundError: no such model, or several; lists those there are.
        """
        with self.changed:
            name = self._default if model_id in (None, DEFAULT) else model_id
            model = self._models.get(name or "")
            if model is not None:
                return model
            same = [m for m in self._models.values() if m.canonical_id == name]
            if len(same) == 1:
                return same[0]
            if same:
                names = ", ".join(m.model_id for m in same)
                raise ModelNotFoundError(f"{name!r} is the origin of several models: say {names}")
            there = ", ".join(self._models) or "none"
            raise ModelNotFoundError(f"model {model_id!r} not found; registered: {there}")

    def __contains__(self, model_id: object) -> bool:
        with self.changed:
            return any(model_id in (m.model_id, m.canonical_id) for m in self._models.values())

    def statuses(self) -> list[tuple[str, ModelStatus]]:
        """Every model with its status, in the order they were added."""
        with self.changed:
            return [(m.model_id, ModelStatus(m.status, m.error)) for m in self._models.values()]

    def status(self, model_id: str) -> ModelStatus:
        """One of them; raises as `find` does."""
        model = self.find(model_id)
        with self.changed:
            return ModelStatus(model.status, model.error)

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

        One of several concurrent callers reloads and the others wait for it, also for its failure.
        """
        model = self.find(model_id)
        with self.changed:
            model.waiting += 1
        try:
            return self._lease(model)
        finally:
            with self.changed:
                model.waiting -= 1
                self.changed.notify_all()

    def _lease(self, model: Model) -> Lease:
        while True:
            with self.changed:
                self._check_registered(model)
                if model.pipeline is not None and not model.draining:
                    model.leases += 1
                    clock = self.residents.clock
                    return Lease(model, model.pipeline, self.changed, clock)
                if model.status != "unloaded":
                    attempts = model.attempts
                    self.changed.wait()
                    if model.attempts != attempts and model.error is not None:
                        raise ModelLoadError(
                            f"model {model.model_id!r} could not be loaded: {model.error}"
                        )
                    continue
                model.status = "reloading"
            log.info("loading %s for a request", model.model_id)
            self.residents.bring_up(model)

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
                self.changed.wait_for(lambda: model.leases == 0 or self.residents.closed)
                self.residents.check_open()
                assert model.pipeline is not None
                pipeline = model.pipeline
            yield pipeline
            model.nbytes = held(pipeline) or model.nbytes
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
            self._check_registered(model)
            if model.status != "unloaded":
                raise ValidationError(f"model {model_id!r} is {model.status} already")
            model.status = "reloading"
        self.residents.bring_up(model)

    def unload(self, model_id: str) -> None:
        """Free a model's memory once its running requests have ended; it can be reloaded. If it
        was the default, another loaded model becomes that.

        Raises:
            ValidationError: it is not loaded.
        """
        model = self.find(model_id)
        with self.changed:
            if model.status != "loaded" or model.draining:
                raise ValidationError(f"model {model_id!r} is not loaded, so it cannot be unloaded")
            model.draining = True
            self._pass_default_on(model)
        self.residents.take_down(model)

    def remove(self, model_id: str) -> None:
        """Unload a model and forget it.

        Raises:
            ValidationError: it is the last one.
        """
        model = self.find(model_id)
        with self.changed:
            self._check_registered(model)
            if len(self._models) == 1:
                raise ValidationError(
                    f"{model_id!r} is the last model of this runner and stays; "
                    f"close the runner to free it"
                )
            self._forget(model)
            try:
                self.changed.wait_for(lambda: model.status != "reloading" and not model.draining)
            except BaseException:  # such as Ctrl-C
                self._models.setdefault(model.model_id, model)
                raise
            model.draining = True
        self.residents.take_down(model)

    def close(self) -> None:
        """End every engine; running requests end with `EngineClosedError`. Safe to call twice."""
        if self._watch is not None:
            self._watch.end()
        with self.changed:
            models = list(self._models.values())
        self.residents.close(models)

    # Their steps --------------------------------------------------------------------------

    def _check_registered(self, model: Model) -> None:
        self.residents.check_open()
        if self._models.get(model.model_id) is not model:
            raise ModelNotFoundError(f"model {model.model_id!r} has been removed")

    def _forget(self, model: Model) -> None:
        if self._models.get(model.model_id) is model:
            del self._models[model.model_id]
        self._pass_default_on(model)
        self.changed.notify_all()

    def _pass_default_on(self, model: Model) -> None:
        """Make another model the default: a loaded one, or where ``model`` is no longer registered
        any."""
        if self._default != model.model_id:
            return
        others = [m for m in self._models.values() if m is not model]
        loaded = [m for m in others if m.status == "loaded" and not m.draining]
        if model.model_id not in self._models:
            loaded += others
            self._default = None
        if loaded:
            self._default = loaded[0].model_id
