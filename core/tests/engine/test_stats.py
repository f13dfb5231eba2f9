"""What the engine says of itself."""

from __future__ import annotations

import threading

import pytest

PROMPT = "the cat sat on the mat"


def test_queue_blocks_and_speed(toy, engines):
    executor = toy.Executor(num_blocks=14)  # 56 tokens for three sequences of 48
    engines.append(engine := toy.engine(executor, prefix_cache=True, max_step_tokens=20))
    assert not any(v for k, v in engine.stats().items() if k not in ("blocks_total", "block_size"))
    seqs = [toy.seq(engine, p, 38, ignore_eos=True) for p in ("one two", "three four", "five six")]
    engine.submit(seqs)
    for seq in seqs:
        toy.read(seq)
    stats = toy.idle(engine)
    assert (stats["blocks_total"], stats["block_size"]) == (14, toy.BLOCK_SIZE)
    assert stats["finished"] == 3
    assert stats["failed"] == stats["canceled"] == stats["preempted"] == 0
    assert stats["preemptions"] > 0
    assert stats["admissions"] == 3 + stats["preemptions"]
    assert stats["generated_tokens"] == 3 * 38
    assert stats["prompt_tokens"] == sum(len(seq.prompt_ids) for seq in seqs)
    # Everything but each last token, and what was found neither again nor anew.
    tokens = stats["prompt_tokens"] + stats["generated_tokens"] - 3
    assert stats["computed_tokens"] >= tokens - stats["prefix_hit_tokens"]
    assert stats["computed_tok_per_sec"] == stats["computed_tokens"] / stats["busy_secs"]
    assert stats["generated_tok_per_sec"] == stats["generated_tokens"] / stats["busy_secs"]
    waits = [seq.timings.scheduled - seq.timings.arrived for seq in seqs]
    assert stats["queue_secs"] == pytest.approx(sum(waits))
    assert stats["longest_queue_secs"] == pytest.approx(max(waits))


def test_hits_misses_and_evictions(toy, engines):
    engines.append(engine := toy.engine(toy.Executor(num_blocks=10)))
    size = toy.BLOCK_SIZE
    full = (len(PROMPT) - 1) // size
    for _ in range(2):
        engine.submit([seq := toy.seq(engine, PROMPT, 1)])
        toy.read(seq)
    stats = toy.idle(engine)
    assert (stats["prefix_hit_blocks"], stats["prefix_miss_blocks"]) == (full, full)
    assert stats["prefix_hit_tokens"] == full * size
    assert stats["prefix_miss_tokens"] == 2 * len(PROMPT) - full * size
    assert stats["prefix_lookup_tokens"] == 2 * len(PROMPT)
    assert stats["blocks_cached"] == full
    assert stats["prefix_evictions"] == 0
    engine.submit([seq := toy.seq(engine, "z" * 9 * size, 1)])
    toy.read(seq)
    stats = toy.idle(engine)
    assert stats["prefix_evictions"] > 0
    assert stats["prefix_evicted_tokens"] == stats["prefix_evictions"] * size


def test_who_waits_and_for_how_long(toy, engines):
    executor = toy.Executor(num_blocks=14)
    executor.hold()
    engines.append(engine := toy.engine(executor, max_seqs=1))
    seqs = [toy.seq(engine, "ab", 3, ignore_eos=True) for _ in range(3)]
    engine.submit(seqs)
    assert executor.entered.acquire(timeout=10)
    engine.cancel(seqs[2:])
    before, after = engine.stats(), None
    done = threading.Event()
    while not done.wait(0.01):
        after = engine.stats()
        if after["oldest_waiting_secs"] > before["oldest_waiting_secs"] > 0:
            done.set()
    assert (after["running"], after["waiting"]) == (1, 2)
    executor.let(100)
    for seq in seqs:
        toy.read(seq)
    stats = toy.idle(engine)
    assert (stats["finished"], stats["canceled"]) == (3, 1)


def test_counters_outlive_what_is_forgotten(toy, engines):
    engines.append(engine := toy.engine())
    for _ in range(2):
        engine.submit([seq := toy.seq(engine, PROMPT, 2)])
        toy.read(seq)
    before = toy.idle(engine)
    engine.forget()
    after = engine.stats()
    assert after["blocks_cached"] == 0
    same = ("prefix_hit_tokens", "generated_tokens", "finished", "queue_secs", "admissions")
    assert [after[name] for name in same] == [before[name] for name in same]
