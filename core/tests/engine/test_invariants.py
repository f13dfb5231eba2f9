"""However it is scheduled, a sequence gets the same text."""

from __future__ import annotations

import pytest

PROMPT = "whatever the schedule, the text stays."


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_step_tokens": 6, "max_seqs": 2},
        {"max_step_tokens": 2, "max_seqs": 1},
        {"prefix_cache": False},
        {"no_kv_cache": True},
    ],
    ids=["whole", "chunked", "token by token", "no sharing", "no cache"],
)
def test_alone(toy, engines, options):
    engines.append(engine := toy.engine(**options))
    seq = toy.seq(engine, PROMPT, 40, ignore_eos=True)
    engine.submit([seq])
    text, last, _ = toy.read(seq)
    ids, expected, reason = toy.answer(PROMPT, 40, ignore_eos=True)
    assert (text, seq.output_ids, last.finish_reason) == (expected, ids, reason)


@pytest.mark.parametrize("no_kv_cache", [False, True])
def test_batched_with_strangers(toy, engines, no_kv_cache):
    engines.append(engine := toy.engine(toy.Executor(400), max_seqs=5, no_kv_cache=no_kv_cache))
    prompts = [PROMPT[: 1 + 3 * i] for i in range(12)]
    seqs = [toy.seq(engine, prompt, 5 + 2 * i) for i, prompt in enumerate(prompts)]
    engine.submit(seqs)
    for i, (seq, prompt) in enumerate(zip(seqs, prompts, strict=True)):
        text, last, _ = toy.read(seq)
        assert (seq.output_ids, text, last.finish_reason) == toy.answer(prompt, 5 + 2 * i)
    assert max(map(len, engine._executor.shapes)) == 5


@pytest.mark.parametrize("prefix_cache", [True, False])
def test_preempted_and_resumed(toy, engines, prefix_cache):
    executor = toy.Executor(num_blocks=14)  # 56 tokens for three sequences of 48
    engines.append(engine := toy.engine(executor, prefix_cache=prefix_cache, max_step_tokens=20))
    prompts = ["one two", "three four", "five six"]
    seqs = [toy.seq(engine, prompt, 38, ignore_eos=True) for prompt in prompts]
    engine.submit(seqs)
    for seq, prompt in zip(seqs, prompts, strict=True):
        toy.read(seq)
        assert seq.output_ids == toy.answer(prompt, 38, ignore_eos=True)[0]
    assert engine.stats()["preemptions"] > 0
    assert seqs[0].timings.finished < seqs[1].timings.finished < seqs[2].timings.finished
    toy.idle(engine)


def test_prefix_hit(toy, engines):
    engines.append(engine := toy.engine())
    first = toy.seq(engine, PROMPT, 10, ignore_eos=True)
    engine.submit([first])
    answer, _, _ = toy.read(first)
    longer = PROMPT + answer + " and on"
    again, more = toy.seq(engine, PROMPT, 10, ignore_eos=True), toy.seq(engine, longer, 10)
    for seq, prompt in ((again, PROMPT), (more, longer)):
        engine.submit([seq])
        toy.read(seq)
        ids, _, _ = toy.answer(prompt, 10, ignore_eos=seq.ignore_eos)
        assert seq.output_ids == ids
    # All full blocks of the prompt but the part that logits are computed from.
    assert again.num_cached_tokens == (len(PROMPT) - 1) // toy.BLOCK_SIZE * toy.BLOCK_SIZE
    # The answer's blocks too; its last token was never computed.
    known = len(PROMPT) + len(answer) - 1
    assert more.num_cached_tokens == known // toy.BLOCK_SIZE * toy.BLOCK_SIZE
    stats = engine.stats()
    assert stats["prefix_hit_tokens"] == again.num_cached_tokens + more.num_cached_tokens


def test_another_root_shares_nothing(toy, engines):
    engines.append(engine := toy.engine())
    for root in (b"adapter-1", b"adapter-2"):
        engine.submit([seq := toy.seq(engine, PROMPT, 3, cache_root=root)])
        toy.read(seq)
        assert seq.num_cached_tokens == 0


def test_choices_of_one_request_prefill_once(toy, engines):
    engines.append(engine := toy.engine(max_step_tokens=12, max_seqs=6))
    seqs = [toy.seq(engine, PROMPT, 6, index=i) for i in range(4)]
    engine.submit(seqs)
    for seq in seqs:
        toy.read(seq)
        assert seq.output_ids == toy.answer(PROMPT, 6)[0]
    shared = (len(PROMPT) - 1) // toy.BLOCK_SIZE * toy.BLOCK_SIZE
    assert [seq.num_cached_tokens for seq in seqs] == [0, shared, shared, shared]


def test_stranger_passes_those_who_wait_for_a_prefix(toy, engines):
    executor = toy.Executor()
    executor.hold()
    engines.append(engine := toy.engine(executor, max_step_tokens=16, max_seqs=6))
    twins = [toy.seq(engine, PROMPT, 2, index=i) for i in range(2)]
    stranger = toy.seq(engine, "zz", 2)
    engine.submit([*twins, stranger])
    executor.let(10_000)
    for seq in (*twins, stranger):
        toy.read(seq)
    assert stranger.timings.scheduled < twins[1].timings.scheduled
    assert stranger.output_ids == toy.answer("zz", 2)[0]


def test_prefill_does_not_hold_up_decoding(toy, engines):
    executor = toy.Executor()
    executor.hold()
    engines.append(engine := toy.engine(executor, max_step_tokens=8, max_seqs=4))
    engine.submit([early := toy.seq(engine, "ab", 30, ignore_eos=True)])
    executor.let(2)
    early.output.get(5)
    engine.submit([late := toy.seq(engine, PROMPT, 2)])
    executor.let(10_000)
    toy.read(late)
    toy.read(early)
    mixed = [shape for shape in executor.shapes if len(shape) == 2]
    assert mixed[0] == [1, 7]
    assert all(shape[0] == 1 and sum(shape) <= 8 for shape in mixed)


def test_no_step_exceeds_its_budget(toy, engines):
    executor = toy.Executor()
    engines.append(engine := toy.engine(executor, max_step_tokens=8, max_seqs=4))
    seqs = [toy.seq(engine, letter * 12, 1) for letter in "abc"]
    engine.submit(seqs)
    for seq in seqs:
        toy.read(seq)
    assert executor.shapes == [[8], [4, 4], [8], [8], [4]]


def test_finished_sequences_stay_cached_up_to_a_number(toy, engines):
    engines.append(engine := toy.engine(prefix_cache=1))
    for text, hit in (("first prompt", 0), ("second one here", 0), ("first prompt", 0)):
        engine.submit([seq := toy.seq(engine, text, 2)])
        toy.read(seq)
        assert seq.num_cached_tokens == hit
    engine.submit([seq := toy.seq(engine, "first prompt", 2)])
    toy.read(seq)
    assert seq.num_cached_tokens == 8


def test_64_requests_at_once(toy, engines):
    engines.append(engine := toy.engine(toy.Executor(120), max_step_tokens=64))
    prompts = [f"request {'abcdefgh'[i % 8]}{'xyz' * (i // 8)}" for i in range(64)]
    seqs = [toy.seq(engine, prompt, 12) for prompt in prompts]
    for seq in seqs:
        engine.submit([seq])
    for seq, prompt in zip(seqs, prompts, strict=True):
        text, last, _ = toy.read(seq)
        assert (seq.output_ids, text, last.finish_reason) == toy.answer(prompt, 12)
    stats = toy.idle(engine)
    assert stats["prompt_tokens"] == sum(map(len, prompts))
    assert stats["generated_tokens"] == sum(len(seq.output_ids) for seq in seqs)
