"""Names, states, memory and leases of models, with pipelines that only count."""

from __future__ import annotations

import random
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from attrs import define, field

from tramontane.errors import (
    EngineClosedError,
    MemoryPlanError,
    ModelLoadError,
    ModelNotFoundError,
    ValidationError,
)
from tramontane.models import ModelTable

SECS = 20


@define(eq=False)
class Fake:
    """A pipeline of so many bytes."""

    nbytes: int
    closed: threading.Event = field(factory=threading.Event)

    def stats(self) -> dict[str, Any]:
        return {"weight_bytes": self.nbytes}

    def close(self) -> None:
        self.closed.set()


@define(eq=False)
class Loader:
    """Makes `Fake`s. ``gate``, if there is one, holds each load up; ``failing`` makes it fail."""

    nbytes: int = 1
    gate: threading.Event | None = None
    announces: bool = True
    failing: str = ""
    begun: threading.Event = field(factory=threading.Event)
    made: list[Fake] = field(factory=list)
    num_loads: int = 0

    def __call__(self, reserve: Callable[[int], int | None]) -> Any:
        self.num_loads += 1
        if self.announces:
            reserve(self.nbytes)
        self.begun.set()
        if self.gate is not None:
            assert self.gate.wait(SECS)
        if self.failing:
            raise ModelLoadError(self.failing)
        self.made.append(Fake(self.nbytes))
        return self.made[-1]


def loaded(table: ModelTable) -> list[str]:
    return [name for name, status in table.statuses() if status == "loaded"]


def use(table: ModelTable, name: str) -> None:
    with table.using(name):
        pass


def in_thread(function: Callable[..., Any], *args: Any) -> threading.Thread:
    thread = threading.Thread(target=function, args=args, daemon=True)
    thread.start()
    return thread


def until(table: ModelTable, true: Callable[[], bool]) -> None:
    with table.changed:
        assert table.changed.wait_for(true, SECS)


# Names ------------------------------------------------------------------------------------


def test_a_model_answers_to_its_alias_and_its_origin():
    table = ModelTable()
    table.add("small", Loader(), canonical_id="org/model")
    assert table.find("small") is table.find("org/model") is table.find("default")
    assert "org/model" in table
    assert [name for name, _ in table.statuses()] == ["small"]


def test_an_origin_of_two_models_names_neither():
    table = ModelTable()
    table.add("a", Loader(), canonical_id="org/model")
    table.add("b", Loader(), canonical_id="org/model")
    with pytest.raises(ModelNotFoundError, match="several models: say a, b"):
        table.find("org/model")


@pytest.mark.parametrize("name", ["a", "org/model", "", "default"])
def test_a_name_that_is_taken_is_refused(name):
    table = ModelTable()
    table.add("a", Loader(), canonical_id="org/model")
    loader = Loader()
    with pytest.raises(ValidationError, match="alias"):
        table.add(name, loader)
    assert not loader.num_loads


def test_the_default_moves_to_a_loaded_model_only_when_told_to_unload():
    table = ModelTable()
    table.add("a", Loader())
    table.unload("a")
    assert table.default == "a", "there is no other"
    table.reload("a")
    table.add("b", Loader(), now=False)
    table.add("c", Loader())
    table.unload("a")
    assert table.default == "c"
    table.remove("c")
    assert table.default == "a"


# Loading ----------------------------------------------------------------------------------


def test_requests_to_an_unloaded_model_load_it_once():
    table = ModelTable()
    loader = Loader(gate=threading.Event())
    table.add("a", loader, now=False)
    served: list[Any] = []

    def ask() -> None:
        with table.using("a") as pipeline:
            served.append(pipeline)

    threads = [in_thread(ask) for _ in range(8)]
    until(table, lambda: table.find("a").waiting == 8)
    loader.gate.set()
    for thread in threads:
        thread.join(SECS)
    assert loader.num_loads == 1
    assert served == loader.made * 8


def test_requests_share_the_failure_of_the_load_they_wait_for():
    table = ModelTable()
    loader = Loader(gate=threading.Event(), failing="the file is damaged")
    table.add("a", loader, now=False)
    errors: list[str] = []

    def ask() -> None:
        with pytest.raises(ModelLoadError) as caught:
            use(table, "a")
        errors.append(str(caught.value))

    threads = [in_thread(ask) for _ in range(5)]
    until(table, lambda: table.find("a").waiting == 5)
    loader.gate.set()
    for thread in threads:
        thread.join(SECS)
    assert loader.num_loads == 1
    assert len(errors) == 5
    assert all("the file is damaged" in error for error in errors)
    ((name, status),) = table.statuses()
    assert (name, status) == ("a", "unloaded")
    assert status.error == "ModelLoadError: the file is damaged"
    assert table.find("a").nbytes == 0
    loader.failing = ""
    table.reload("a")
    assert table.status("a").error is None


def test_a_model_that_fails_to_load_is_not_registered():
    table = ModelTable()
    table.add("a", Loader())
    with pytest.raises(ModelLoadError):
        table.add("b", Loader(failing="no"))
    assert [name for name, _ in table.statuses()] == ["a"]
    table.add("b", Loader())


def test_who_keeps_the_error_of_a_load_does_not_keep_what_was_loaded():
    class Weights:
        pass

    left: list[weakref.ref[Weights]] = []

    def load(reserve: Any) -> Any:
        half = Weights()
        left.append(weakref.ref(half))
        raise ModelLoadError("midway")

    with pytest.raises(ModelLoadError) as caught:
        ModelTable().add("a", load)
    assert caught.value.__traceback__ is not None
    assert left[0]() is None


# Leaving ----------------------------------------------------------------------------------


def test_an_unload_waits_for_requests_and_new_ones_for_it():
    table = ModelTable()
    loader = Loader()
    table.add("a", loader)
    lease = table.lease("a")
    unloading = in_thread(table.unload, "a")
    until(table, lambda: table.find("a").draining)
    late = in_thread(use, table, "a")
    until(table, lambda: table.find("a").waiting == 1)
    assert not loader.made[0].closed.is_set()
    lease.release()
    unloading.join(SECS)
    late.join(SECS)
    assert loader.made[0].closed.is_set()
    assert loader.num_loads == 2, "the late request loaded it again"


def test_a_model_is_removed_while_it_serves():
    table = ModelTable()
    loader = Loader()
    table.add("a", Loader())
    table.add("b", loader)
    lease = table.lease("b")
    removing = in_thread(table.remove, "b")
    until(table, lambda: "b" not in table)
    with pytest.raises(ModelNotFoundError):
        table.lease("b")
    table.add("b", Loader())
    assert not loader.made[0].closed.is_set()
    lease.release()
    removing.join(SECS)
    assert loader.made[0].closed.is_set()
    assert loaded(table) == ["a", "b"]


def test_what_is_idle_is_unloaded_and_what_serves_is_not():
    now = [0.0]
    table = ModelTable(clock=lambda: now[0])
    table.add("a", Loader())
    table.add("b", Loader())
    table.add("c", Loader())
    lease = table.lease("a")
    now[0] = 6.0
    use(table, "b")
    now[0] = 10.0
    assert table.residents.unload_idle(10.0) == 6.0
    assert loaded(table) == ["a", "b"]
    assert table.default == "a"
    lease.release()
    assert table.residents.unload_idle(10.0) == 6.0
    now[0] = 20.0
    table.residents.unload_idle(10.0)
    assert loaded(table) == []
    assert table.default == "a", "the next request loads it again"


def test_idle_models_leave_by_themselves_and_so_does_the_watch():
    table = ModelTable(idle_secs=0.01)
    loader = Loader()
    table.add("a", loader)
    assert loader.made[0].closed.wait(SECS)
    use(table, "a")
    assert loader.made[1].closed.wait(SECS)
    (watch,) = (t for t in threading.enumerate() if t.name == "tramontane-idle-models")
    del table
    watch.join(SECS)
    assert not watch.is_alive()


# Memory -----------------------------------------------------------------------------------


@pytest.mark.parametrize("announces", [True, False])
def test_the_model_used_longest_ago_makes_room(announces):
    table = ModelTable(budget_bytes=10)
    for name in "abc":
        table.add(name, Loader(nbytes=3, announces=announces))
    use(table, "a")
    table.add("d", Loader(nbytes=3, announces=announces))
    assert loaded(table) == ["a", "c", "d"]
    table.add("e", Loader(nbytes=7, announces=announces))
    assert loaded(table) == ["d", "e"]
    assert table.default == "a", "the next request loads it again"


def test_a_model_beyond_the_budget_is_refused_and_nobody_leaves_for_it():
    table = ModelTable(budget_bytes=10 << 20)
    table.add("a", Loader(nbytes=6 << 20))
    for announces in (True, False):
        loader = Loader(nbytes=11 << 20, announces=announces)
        with pytest.raises(MemoryPlanError, match=r"11\.0 MiB .*memory_budget_bytes \(10\.0 MiB"):
            table.add("b", loader)
        assert all(made.closed.is_set() for made in loader.made)
    assert loaded(table) == ["a"]


def test_a_model_that_serves_is_never_evicted_but_waited_for():
    table = ModelTable(budget_bytes=10)
    serving, other = Loader(nbytes=6), Loader(nbytes=6)
    table.add("a", serving)
    table.add("b", other, now=False)
    lease = table.lease("a")
    asking = in_thread(use, table, "b")
    until(table, lambda: other.num_loads == 1)
    assert not other.begun.wait(0.05)
    assert not serving.made[0].closed.is_set()
    lease.release()
    asking.join(SECS)
    assert serving.made[0].closed.is_set()
    assert loaded(table) == ["b"]


def test_closing_ends_the_wait_for_room():
    table = ModelTable(budget_bytes=10)
    waiting = Loader(nbytes=6)
    table.add("a", Loader(nbytes=6))
    table.add("b", waiting, now=False)
    table.lease("a")
    errors: list[BaseException] = []

    def ask() -> None:
        with pytest.raises(EngineClosedError) as caught:
            use(table, "b")
        errors.append(caught.value)

    asking = in_thread(ask)
    until(table, lambda: waiting.num_loads == 1)
    table.close()
    asking.join(SECS)
    assert len(errors) == 1
    with pytest.raises(EngineClosedError):
        table.add("c", Loader())


def test_many_requests_to_more_models_than_fit_are_all_served():
    table = ModelTable(budget_bytes=10)
    loaders = {name: Loader(nbytes=4) for name in "abcd"}
    for name, loader in loaders.items():
        table.add(name, loader, now=False)
    faults: list[str] = []
    served: list[str] = []

    def ask(seed: int) -> None:
        order = random.Random(seed)
        for _ in range(25):
            name = order.choice("abcd")
            with table.using(name) as pipeline:
                if pipeline.closed.is_set():  # type: ignore[attr-defined]
                    faults.append(f"{name} was closed while it served")
                alive = [m for one in loaders.values() for m in one.made if not m.closed.is_set()]
                if sum(m.nbytes for m in alive) > 10:
                    faults.append(f"{len(alive)} models at once")
                served.append(name)

    threads = [in_thread(ask, seed) for seed in range(8)]
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert not faults
    assert len(served) == 200
