"""What fails fails alone, and the engine goes on."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from tramontane.errors import EngineClosedError, EngineError


def poison(token_id, error):
    def fail(batch):
        if token_id in batch.token_ids.tolist():
            raise error

    return fail


def test_of_the_model_hits_only_the_culprit(toy, engines):
    executor = toy.Executor()
    executor.hold()
    engines.append(engine := toy.engine(executor, max_seqs=4))
    (bad_id,) = toy.encode("!")
    executor.fail = poison(bad_id, RuntimeError("index out of range"))
    good = [toy.seq(engine, text, 30) for text in ("abc", "defgh", "ijk")]
    answers = [toy.answer(text, 30) for text in ("abc", "defgh", "ijk")]
    assert not any(bad_id in ids[:-1] for ids, _, _ in answers), "choose another letter"
    bad = toy.seq(engine, "oh!", 30)
    engine.submit([*good[:2], bad, good[2]])
    executor.let(10_000)
    _, last, _ = toy.read(bad)
    assert last.finish_reason == "error"
    assert isinstance(last.error, EngineError)
    assert "index out of range" in str(last.error)
    assert isinstance(last.error.__cause__, RuntimeError)
    for seq, answer in zip(good, answers, strict=True):
        text, last, _ = toy.read(seq)
        assert (seq.output_ids, text, last.finish_reason) == answer
    toy.idle(engine)


def test_of_the_model_alone(toy, engines):
    executor = toy.Executor()
    engines.append(engine := toy.engine(executor))
    executor.fail = poison(toy.encode("!")[0], ValueError("no"))
    engine.submit([bad := toy.seq(engine, "!", 5)])
    assert isinstance(toy.read(bad)[1].error, EngineError)
    engine.submit([good := toy.seq(engine, "abc", 5)])
    toy.read(good)
    assert good.output_ids == toy.answer("abc", 5)[0]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 TB"),
    ],
)
def test_out_of_memory_says_what_to_do(toy, engines, error):
    executor = toy.Executor()
    engines.append(engine := toy.engine(executor))
    executor.fail = poison(toy.encode("!")[0], error)
    engine.submit([bad := toy.seq(engine, "!", 5)])
    assert "max_seqs" in str(toy.read(bad)[1].error)


def test_too_large_a_batch_is_run_in_parts(toy, engines):
    executor = toy.Executor()

    def fail(batch):
        if batch.num_seqs > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    executor.fail = fail
    engines.append(engine := toy.engine(executor))
    seqs = [toy.seq(engine, text, 5) for text in ("abc", "xyz")]
    engine.submit(seqs)
    for seq, text in zip(seqs, ("abc", "xyz"), strict=True):
        toy.read(seq)
        assert seq.output_ids == toy.answer(text, 5)[0]


def test_error_keeps_no_model_alive(toy, engines):
    executor = toy.Executor()
    executor.fail = poison(toy.encode("!")[0], ValueError("no"))
    engine = toy.engine(executor)
    engine.submit([bad := toy.seq(engine, "!", 5)])
    error = toy.read(bad)[1].error
    toy.idle(engine)
    engine.close()
    alive = weakref.ref(executor)
    del engine, executor
    gc.collect()
    assert "in fail" in error.__cause__.__notes__[0]
    assert alive() is None


def test_of_the_sampler(toy, engines, monkeypatch):
    engines.append(engine := toy.engine())
    good, bad = toy.seq(engine, "abc", 8), toy.seq(engine, "xyz", 8)
    sample = engine._sampler.sample

    def fail(logits, states):
        if any(state is bad.sampler_state for state in states):
            raise ArithmeticError("nan")
        return sample(logits, states)

    monkeypatch.setattr(engine._sampler, "sample", fail)
    engine.submit([good, bad])
    assert "nan" in str(toy.read(bad)[1].error)
    toy.read(good)
    assert good.output_ids == toy.answer("abc", 8)[0]
    toy.idle(engine)


@pytest.mark.parametrize("method", ["push", "flush"])
def test_of_the_text(toy, engines, monkeypatch, method):
    engines.append(engine := toy.engine())
    good, bad = toy.seq(engine, "abc", 8), toy.seq(engine, "xyz", 8, ignore_eos=True)

    def fail(*args):
        raise UnicodeError("broken")

    monkeypatch.setattr(bad.transcript, method, fail)
    engine.submit([good, bad])
    last = toy.read(bad)[1]
    assert isinstance(last.error, EngineError)
    assert isinstance(last.error.__cause__, UnicodeError)
    toy.read(good)
    assert good.output_ids == toy.answer("abc", 8)[0]
    toy.idle(engine)


def test_of_the_engine_itself_ends_all_and_starts_afresh(toy, engines, monkeypatch):
    engines.append(engine := toy.engine())

    def fail():
        raise AssertionError("a bug")

    monkeypatch.setattr(engine._scheduler, "schedule", fail)
    engine.submit([seq := toy.seq(engine, "abc", 8)])
    assert "a bug" in str(toy.read(seq)[1].error)
    engine.submit([seq := toy.seq(engine, "abc", 8)])
    toy.read(seq)
    assert seq.output_ids == toy.answer("abc", 8)[0]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_of_the_thread_closes_the_engine(toy, monkeypatch):
    engine = toy.engine()

    def fail():
        raise KeyboardInterrupt

    monkeypatch.setattr(engine._scheduler, "schedule", fail)
    engine.submit([seq := toy.seq(engine, "abc", 8)])
    assert isinstance(toy.read(seq)[1].error, EngineClosedError)
    engine._thread.join(5)
    assert engine._executor.closed
    with pytest.raises(EngineClosedError):
        engine.submit([toy.seq(engine, "abc", 8)])
    engine.close()
