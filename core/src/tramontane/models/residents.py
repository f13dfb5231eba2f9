"""`Residents`: models that hold memory. Loading them, freeing them, and making room."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from tramontane.errors import EngineClosedError, MemoryPlanError
from tramontane.models.memory import forget_frames, trim
from tramontane.models.model import Model

if TYPE_CHECKING:
    from tramontane.protocols.pipeline import Pipeline

log = logging.getLogger(__name__)


class Residents:
    """Thread-safe; a part of `tramontane.models.ModelTable`, whose lock it brings.

    With a budget, models are loaded one at a time, and a load makes room by unloading those whose
    last request ended longest ago. A model that serves a request, or is wanted by one, stays: the
    load waits for it.

    Args:
        budget_bytes: weights and caches of all models together; None for no limit.
        clock: seconds.

    Attributes:
        changed: guards every model and tells of each change.
        closed: whether nothing is to be loaded any more.
    """

    def __init__(self, budget_bytes: int | None, clock: Callable[[], float]) -> None:
        self.changed = threading.Condition()
        self.closed = False
        self.clock = clock
        # Those that are being loaded or removed included.
        self._models: list[Model] = []
        self._budget_bytes = budget_bytes
        self._loading: Any = nullcontext() if budget_bytes is None else threading.Lock()

    def check_open(self) -> None:
        """Raises `EngineClosedError` once they have been closed."""
        if self.closed:
            raise EngineClosedError("this runner has been closed; make a new one")

    def bring_up(self, model: Model) -> None:
        """Run ``model.load`` without the lock; the caller has set the status to reloading."""
        pipeline: Pipeline | None = None
        error: str | None = None
        try:
            with self._loading:
                with self.changed:
                    self.check_open()
                    self._models.append(model)
                pipeline = self._loaded(model)
        except BaseException as cause:
            error = f"{type(cause).__name__}: {cause}"
            forget_frames(cause)
            trim()
            raise
        finally:
            with self.changed:
                model.pipeline = pipeline
                model.status = "unloaded" if pipeline is None else "loaded"
                model.error = error
                model.attempts += 1
                model.last_used = self.clock()
                if pipeline is None:
                    self._freed(model)
                self.changed.notify_all()

    def take_down(self, model: Model) -> None:
        """Wait for the leases of a draining model, then close its pipeline.

        The lock is not held while closing: the engine's thread may need it to end a request.
        """
        pipeline: Pipeline | None = None
        try:
            with self.changed:
                self.changed.wait_for(lambda: model.leases == 0 or self.closed)
                pipeline, model.pipeline = model.pipeline, None
            if pipeline is not None:
                pipeline.close()
                pipeline = None
                trim()
        finally:
            with self.changed:
                if model.pipeline is None:
                    model.status = "unloaded"
                    self._freed(model)
                model.draining = False
                self.changed.notify_all()

    def unload_idle(self, idle_secs: float) -> float:
        """Unload what has not been used for so long.

        Returns:
            Seconds until the next model may be due.
        """
        wait = idle_secs
        while True:
            with self.changed:
                if self.closed:
                    return wait
                now = self.clock()
                idle = [m for m in self._models if m.is_idle]
                due = [m for m in idle if now - m.last_used >= idle_secs]
                if not due:
                    return min([wait, *(m.last_used + idle_secs - now for m in idle)])
                due[0].draining = True
            log.info("unloading %s, unused for %g s", due[0].model_id, idle_secs)
            try:
                self.take_down(due[0])
            except Exception:
                log.exception("%s did not close well", due[0].model_id)

    def close(self, registered: Iterable[Model]) -> None:
        """End every engine, once loads under way have ended. Safe to call twice."""
        with self.changed:
            self.closed = True
            self.changed.notify_all()  # to those who wait for room
            known = [*registered, *self._models]
            self.changed.wait_for(lambda: all(m.status != "reloading" for m in known))
            pipelines = [m.pipeline for m in self._models if m.pipeline is not None]
            for model in self._models:
                model.pipeline, model.status, model.nbytes = None, "unloaded", 0
            self._models.clear()
            self.changed.notify_all()
        if pipelines:
            while pipelines:
                pipelines.pop().close()
            trim()

    def _loaded(self, model: Model) -> Pipeline:
        pipeline = model.load(partial(self._reserve, model))
        nbytes = held(pipeline)
        if nbytes > model.nbytes:  # a pipeline that did not announce what it would take
            try:
                self._reserve(model, nbytes)
            except BaseException:
                pipeline.close()
                raise
        return pipeline

    def _reserve(self, model: Model, nbytes: int) -> int | None:
        """Make room for ``nbytes`` of a model that is being loaded.

        Returns:
            What is then left of the budget; None without one.

        Raises:
            MemoryPlanError: they exceed the budget even alone; nothing was unloaded for them.
        """
        budget = self._budget_bytes
        if budget is not None and nbytes > budget:
            raise MemoryPlanError(
                f"model {model.model_id!r} needs {_mib(nbytes)} for weights and cache, more than "
                f"all models may take together: raise memory_budget_bytes ({_mib(budget)}), or "
                f"load it with a smaller cache (pa_ctxt_len) or in a smaller format "
                f"(in_situ_quant, a GGUF file)"
            )
        while True:
            with self.changed:
                self.check_open()
                left = None
                if budget is not None:
                    others = sum(m.nbytes for m in self._models if m is not model)
                    left = budget - others - nbytes
                if left is None or left >= 0:
                    model.nbytes = nbytes
                    return left
                idle = [m for m in self._models if m.is_idle and m is not model]
                if not idle:
                    self.changed.wait()
                    continue
                oldest = min(idle, key=lambda m: m.last_used)
                oldest.draining = True
            log.info("unloading %s to make room for %s", oldest.model_id, model.model_id)
            self.take_down(oldest)

    def _freed(self, model: Model) -> None:
        model.nbytes = 0
        if model in self._models:
            self._models.remove(model)


def held(pipeline: Pipeline) -> int:
    """Bytes of weights and cache, as far as the pipeline says."""
    stats = pipeline.stats()
    return int(stats.get("weight_bytes", 0)) + int(stats.get("cache_bytes", 0))


def _mib(nbytes: int) -> str:
    return f"{nbytes / (1 << 20):,.1f} MiB"
