"""How sequences end: stop rules, cancellation, closing."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref

import pytest
import torch

from tramontane.engine.output import OutputQueue
from tramontane.engine.sequence import Status
from tramontane.errors import EngineClosedError, ValidationError


def test_eos_ends_with_stop_and_is_no_text(toy, engines):
    engines.append(engine := toy.engine())
    ended = []
    for letter in "abcdefgh":
        engine.submit([seq := toy.seq(engine, letter, 150)])
        text, last, _ = toy.read(seq)
        assert (seq.output_ids, text, last.finish_reason) == toy.answer(letter, 150)
        ended.append(last.finish_reason)
        assert (seq.output_ids[-1] == toy.EOS) == (last.finish_reason == "stop")
    assert "stop" in ended


def test_ignore_eos(toy, engines):
    engines.append(engine := toy.engine())
    for letter in "abcdefgh":
        engine.submit([seq := toy.seq(engine, letter, 150, ignore_eos=True)])
        _, last, _ = toy.read(seq)
        assert (len(seq.output_ids), last.finish_reason) == (150, "length")


def test_max_tokens_none_runs_to_the_end_of_the_context(toy, engines):
    engines.append(engine := toy.engine(max_seq_len=50))
    engine.submit([seq := toy.seq(engine, "some prompt", None, ignore_eos=True)])
    _, last, _ = toy.read(seq)
    assert (seq.num_tokens, last.finish_reason) == (50, "length")


def test_context_ends_where_the_cache_ends(toy, engines):
    engines.append(engine := toy.engine(toy.Executor(num_blocks=5)))
    assert engine.max_seq_len == 20
    engine.submit([seq := toy.seq(engine, "some prompt", None, ignore_eos=True)])
    _, last, _ = toy.read(seq)
    assert (seq.num_tokens, last.finish_reason) == (20, "length")


def test_stop_token_id(toy, engines):
    engines.append(engine := toy.engine())
    ids, _, _ = toy.answer("abc", 20, ignore_eos=True)
    stop = next(i for i in range(5, 20) if ids[i] not in ids[:i])
    seq = toy.seq(engine, "abc", 20, ignore_eos=True, stop_token_ids=frozenset([ids[stop]]))
    engine.submit([seq])
    got, last, _ = toy.read(seq)
    assert (seq.output_ids, got, last.finish_reason) == (
        ids[: stop + 1],
        toy.text(ids[:stop]),
        "stop",
    )


def test_stop_string_is_cut_and_never_shown(toy, engines):
    engines.append(engine := toy.engine())
    _, text, _ = toy.answer("abc", 30, ignore_eos=True)
    stop = text[10:14]
    seq = toy.seq(engine, "abc", 30, ignore_eos=True, stop_strings=(stop,), logprobs=True)
    engine.submit([seq])
    got, last, deltas = toy.read(seq)
    assert (got, last.finish_reason) == (text[: text.index(stop)], "stop")
    entries = [entry for delta in deltas for entry in delta.logprobs]
    assert "".join(entry.token for entry in entries).replace("\u0120", " ") == got
    assert [i for delta in deltas for i in delta.token_ids] == seq.output_ids


def test_stop_string_held_back_is_let_out_at_the_end(toy, engines):
    engines.append(engine := toy.engine())
    _, text, _ = toy.answer("abc", 12, ignore_eos=True)
    seq = toy.seq(engine, "abc", 12, ignore_eos=True, stop_strings=(text[-3:] + "@",))
    engine.submit([seq])
    got, last, _ = toy.read(seq)
    assert (got, last.finish_reason) == (text, "length")


def test_logprobs_keep_step_with_text(toy, engines):
    engines.append(engine := toy.engine())
    seq = toy.seq(engine, "abc", 12, ignore_eos=True, logprobs=True, top_logprobs=3)
    engine.submit([seq])
    _, _, deltas = toy.read(seq)
    entries = [entry for delta in deltas for entry in delta.logprobs]
    assert [entry.token_id for entry in entries] == seq.output_ids
    expected = torch.tensor([5.0] + [0.0] * (toy.VOCAB_SIZE - 1)).log_softmax(0)[0].item()
    for entry in entries:
        assert entry.logprob == pytest.approx(expected)
        assert entry.top[0].token_id == entry.token_id
        assert len(entry.top) == 3
        assert entry.bytes == toy.tokenizer.token_bytes(entry.token_id)


def test_timings_and_counts(toy, engines):
    engines.append(engine := toy.engine())
    engine.submit([seq := toy.seq(engine, "some words", 5, ignore_eos=True)])
    toy.read(seq)
    t = seq.timings
    assert t.arrived <= t.scheduled <= t.prompt_done <= t.first_token <= t.finished
    assert (len(seq.prompt_ids), len(seq.output_ids)) == (10, 5)
    assert engine.stats()["busy_secs"] > 0


class TestCancel:
    def test_while_running(self, toy, engines):
        executor = toy.Executor()
        executor.hold()
        engines.append(engine := toy.engine(executor))
        seq = toy.seq(engine, "abc", 100, ignore_eos=True)
        other = toy.seq(engine, "xyz", 10, ignore_eos=True)
        engine.submit([seq, other])
        executor.let(3)
        for _ in range(4):
            assert executor.entered.acquire(timeout=5)
        engine.cancel([seq])  # the fourth step is going on
        executor.let(10_000)
        text, last, _ = toy.read(seq)
        assert last.finish_reason == "canceled"
        assert seq.output_ids == toy.answer("abc", 3, ignore_eos=True)[0]
        assert text == toy.text(seq.output_ids)
        toy.read(other)
        assert other.output_ids == toy.answer("xyz", 10, ignore_eos=True)[0]
        toy.idle(engine)

    def test_while_waiting(self, toy, engines):
        executor = toy.Executor()
        executor.hold()
        engines.append(engine := toy.engine(executor, max_seqs=1))
        running, waiting = toy.seq(engine, "abc", 4), toy.seq(engine, "def", 4)
        engine.submit([running, waiting])
        assert executor.entered.acquire(timeout=5)
        engine.cancel([waiting])
        executor.let(1)
        _, last, _ = toy.read(waiting)  # after that one step, though the other is still going on
        assert last.finish_reason == "canceled"
        assert running.status is Status.RUNNING
        executor.let(10_000)
        toy.read(running)

    def test_in_the_middle_of_its_prompt(self, toy, engines):
        executor = toy.Executor()
        executor.hold()
        engines.append(engine := toy.engine(executor, max_step_tokens=8, max_seqs=2))
        twins = [toy.seq(engine, "a long prompt for two", 4, index=i) for i in range(2)]
        engine.submit(twins)
        assert executor.entered.acquire(timeout=5)
        engine.cancel(twins[:1])  # the other one waits for its blocks
        executor.let(10_000)
        assert toy.read(twins[0])[1].finish_reason == "canceled"
        toy.read(twins[1])
        assert twins[1].output_ids == toy.answer("a long prompt for two", 4)[0]
        toy.idle(engine)

    def test_while_preempted(self, toy, engines):
        executor = toy.Executor(num_blocks=10)
        executor.hold()
        engines.append(engine := toy.engine(executor))
        first = toy.seq(engine, "one two", 30, ignore_eos=True)
        second = toy.seq(engine, "three four", 25, ignore_eos=True)
        engine.submit([first, second])
        while not engine.stats()["preemptions"]:
            executor.let(1)
            assert executor.entered.acquire(timeout=5)
        assert second.status is Status.WAITING
        engine.cancel([second])
        executor.let(10_000)
        assert toy.read(second)[1].finish_reason == "canceled"
        toy.read(first)
        assert first.output_ids == toy.answer("one two", 30, ignore_eos=True)[0]
        toy.idle(engine)

    def test_before_submission_after_the_end_and_twice(self, toy, engines):
        engines.append(engine := toy.engine())
        engine.cancel([never := toy.seq(engine, "abc", 4)])
        assert toy.read(never)[1].finish_reason == "canceled"
        with pytest.raises(ValidationError):
            engine.submit([never])
        engine.submit([seq := toy.seq(engine, "abc", 4)])
        toy.read(seq)
        engine.cancel([seq])
        engine.cancel([seq, seq])
        assert seq.finish_reason != "canceled"
        toy.idle(engine)


class TestClose:
    def test_during_generation(self, toy):
        executor = toy.Executor()
        executor.hold()
        engine = toy.engine(executor, max_seqs=2)
        seqs = [toy.seq(engine, "abc" * (i + 1), 100, ignore_eos=True) for i in range(5)]
        engine.submit(seqs)
        executor.let(3)
        for _ in range(4):
            assert executor.entered.acquire(timeout=5)
        closer = threading.Thread(target=engine.close)
        closer.start()
        while not engine.closed:
            time.sleep(0.001)
        executor.let(10_000)
        closer.join(5)
        assert not closer.is_alive()
        assert not engine._thread.is_alive()
        assert executor.closed
        for seq in seqs:
            _, last, _ = toy.read(seq)
            assert last.finish_reason == "error"
            assert isinstance(last.error, EngineClosedError)
        with pytest.raises(EngineClosedError):
            engine.submit([toy.seq(engine, "abc")])
        engine.close()
        engine.cancel(seqs)

    def test_frees_the_executor_without_the_collector(self, toy):
        engine = toy.engine()
        engine.submit([seq := toy.seq(engine, "abc")])
        toy.read(seq)
        executor = weakref.ref(engine._executor)
        engine.close()
        gc.disable()
        try:
            del engine
            assert executor() is None
        finally:
            gc.enable()

    def test_dropping_an_idle_engine_ends_its_thread(self, toy):
        engine = toy.engine()
        engine.submit([seq := toy.seq(engine, "abc")])
        toy.read(seq)
        toy.idle(engine)
        thread = engine._thread
        del engine
        thread.join(5)
        assert not thread.is_alive()

    def test_dropping_a_busy_engine_lets_it_finish(self, toy):
        executor = toy.Executor()
        executor.hold()
        engine = toy.engine(executor)
        engine.submit([seq := toy.seq(engine, "abc", 10, ignore_eos=True)])
        assert executor.entered.acquire(timeout=5)
        thread = engine._thread
        del engine
        executor.let(10_000)
        assert toy.read(seq)[0] == toy.answer("abc", 10, ignore_eos=True)[1]
        thread.join(5)
        assert not thread.is_alive()

    def test_from_the_engine_thread(self, toy):
        engine = toy.engine()
        seq = toy.seq(engine, "abc", 50, ignore_eos=True)
        seq.output.subscribe(engine.close)
        engine.submit([seq])
        _, last, _ = toy.read(seq)
        assert isinstance(last.error, EngineClosedError)
        engine._thread.join(5)


class TestReaders:
    def test_one_that_stops_reading_blocks_nobody(self, toy, engines):
        engines.append(engine := toy.engine())
        lazy = toy.seq(engine, "abc", 150, ignore_eos=True)
        keen = toy.seq(engine, "xyz", 20)
        engine.submit([lazy, keen])
        lazy.output.get(5)
        toy.read(keen)
        toy.idle(engine)
        assert lazy.output.ended

    def test_get_times_out_and_ends(self, toy, engines):
        executor = toy.Executor()
        executor.hold()
        engines.append(engine := toy.engine(executor))
        engine.submit([seq := toy.seq(engine, "abc", 2)])
        with pytest.raises(TimeoutError):
            seq.output.get(0.01)
        executor.let(100)
        assert "".join(delta.text for delta in seq.output) == toy.answer("abc", 2)[1]
        with pytest.raises(EOFError):
            seq.output.get(1)
        assert list(seq.output) == []

    @pytest.mark.parametrize("stream", [True, False])
    def test_choices_may_share_a_queue(self, toy, engines, stream):
        engines.append(engine := toy.engine())
        output = OutputQueue(3, stream=stream)
        seqs = [toy.seq(engine, "abc" * (i + 1), 9, index=i, output=output) for i in range(3)]
        engine.submit(seqs)
        texts = ["", "", ""]
        for delta in output:
            assert stream or output.ended
            texts[delta.index] += delta.text
        assert texts == [toy.answer("abc" * (i + 1), 9)[1] for i in range(3)]

    def test_async(self, toy, engines):
        engines.append(engine := toy.engine())

        async def read(prompt):
            engine.submit([seq := toy.seq(engine, prompt, 30)])
            return "".join([delta.text async for delta in seq.output])

        async def main():
            return await asyncio.gather(*map(read, "abcdefgh"))

        assert asyncio.run(main()) == [toy.answer(letter, 30)[1] for letter in "abcdefgh"]

    def test_event_loop_that_is_gone(self, toy, engines):
        executor = toy.Executor()
        executor.hold()
        engines.append(engine := toy.engine(executor))
        seq = toy.seq(engine, "abc", 20, ignore_eos=True)

        async def look():
            async for _ in seq.output:
                break

        async def main():
            engine.submit([seq])
            executor.let(2)
            await asyncio.wait_for(look(), 5)

        asyncio.run(main())
        executor.let(10_000)
        toy.idle(engine)
        assert seq.finish_reason == "length"


def test_stress_from_many_threads(toy, engines):
    executor = toy.Executor(num_blocks=40)
    engines.append(engine := toy.engine(executor, max_seqs=6, max_step_tokens=24, prefix_cache=3))
    wrong: list[object] = []

    def client(number: int) -> None:
        for i in range(12):
            prompt = "shared beginning " + "abcdefgh"[number] * (i % 5 + 1)
            seq = toy.seq(engine, prompt, 4 + 3 * (i % 4))
            engine.submit([seq])
            if i % 3 == 2:
                engine.cancel([seq])
            text, last, _ = toy.read(seq)
            ids, expected, reason = toy.answer(prompt, 4 + 3 * (i % 4))
            if last.finish_reason == "canceled":
                if not expected.startswith(text):
                    wrong.append((prompt, text))
            elif (seq.output_ids, text, last.finish_reason) != (ids, expected, reason):
                wrong.append((prompt, text, expected))

    threads = [threading.Thread(target=client, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
    toy.idle(engine)


def test_seed_of_the_engine_makes_sampling_repeatable(toy, engines):
    def outputs(**options):
        engines.append(engine := toy.engine(**options))
        seqs = [
            toy.seq(engine, "a", 60, ignore_eos=True, temperature=1.0, index=i) for i in range(2)
        ]
        engine.submit(seqs)
        for seq in seqs:
            toy.read(seq)
        return [seq.output_ids for seq in seqs]

    first = outputs(seed=7)
    assert first == outputs(seed=7)
    assert first != outputs(seed=8)
    assert first[0] != first[1]


def test_seed_of_a_request_is_its_own(toy, engines):
    engines.append(engine := toy.engine())
    runs = []
    for index in (0, 0, 1):
        seq = toy.seq(engine, "a", 60, ignore_eos=True, temperature=1.0, seed=3, index=index)
        engine.submit([seq])
        toy.read(seq)
        runs.append(seq.output_ids)
    assert runs[0] == runs[1] != runs[2]
