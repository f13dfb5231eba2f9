"""One registered model, its state, and what keeps it loaded."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, Self

from attrs import define

from tramontane.errors import EngineClosedError

if TYPE_CHECKING:  # protocols import torch, which only loading a model needs
    from tramontane.protocols.pipeline import Pipeline, Reserve

Status = Literal["loaded", "unloaded", "reloading"]


class ModelStatus(str):
    """``"loaded"``, ``"unloaded"`` or ``"reloading"``: a string, with more to tell.

    Attributes:
        error: why the last attempt to load the model failed; None when it did not.
    """

    error: str | None

    def __new__(cls, status: Status, error: str | None = None) -> Self:
        made = super().__new__(cls, status)
        made.error = error
        return made


@define(eq=False)
class Model:
    """One registered model. Every field is guarded by the table's lock.

    Attributes:
        model_id: its registered name: the alias, or the canonical id where it has none.
        canonical_id: repository or directory of its weights, which requests may say too.
        load: brings the model up, with all the settings it was registered with.
        pipeline: the running model, or None while it is not loaded.
        status: ``"loaded"``, ``"unloaded"`` or ``"reloading"``.
        error: why the last attempt to load it failed.
        attempts: loads that have ended, well or not.
        leases: requests that are using the pipeline; an unload waits for them.
        waiting: requests that are about to; like leases they keep the model from being evicted.
        draining: an unload is waiting or at work; nobody new may have the pipeline.
        nbytes: weights and cache, from when the load reserves them until they are freed.
        last_used: when a request last ended, on the table's clock.
    """

    model_id: str
    canonical_id: str
    load: Callable[[Reserve], Pipeline]
    pipeline: Pipeline | None = None
    status: Status = "unloaded"
    error: str | None = None
    attempts: int = 0
    leases: int = 0
    waiting: int = 0
    draining: bool = False
    nbytes: int = 0
    last_used: float = 0.0

    @property
    def is_idle(self) -> bool:
        """Whether it is loaded and nobody has or wants it."""
        return self.status == "loaded" and not (self.draining or self.leases or self.waiting)


class Lease:
    """Keeps a model loaded while a request uses it. `release` is idempotent; any thread."""

    def __init__(
        self,
        model: Model,
        pipeline: Pipeline,
        changed: threading.Condition,
        clock: Callable[[], float],
    ) -> None:
        self._model: Model | None = model
        self._pipeline: Pipeline | None = pipeline
        self._changed = changed
        self._clock = clock

    @property
    def pipeline(self) -> Pipeline:
        """Raises `EngineClosedError` once the lease has been released."""
        if self._pipeline is None:
            raise EngineClosedError("this request has let go of its model")
        return self._pipeline

    def release(self) -> None:
        with self._changed:
            if self._model is not None:
                self._model.leases -= 1
                self._model.last_used = self._clock()
                self._model = self._pipeline = None
                self._changed.notify_all()
