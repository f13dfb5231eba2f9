"""Recurrent state: every schedule gives the same text, a step that is run again too."""

from __future__ import annotations

import pytest
import torch

TEXTS = ["abc", "what a state", "de", "one two three four", "f"]


def read_all(toy, engine, texts, max_tokens):
    seqs = [toy.seq(engine, text, max_tokens) for text in texts]
    engine.submit(seqs)
    for seq, text in zip(seqs, texts, strict=True):
        got, last, _ = toy.read(seq)
        assert (seq.output_ids, got, last.finish_reason) == toy.answer(text, max_tokens)
    return seqs


@pytest.mark.parametrize(
    "options",
    [{}, {"max_step_tokens": 6, "max_seqs": 3}, {"max_seqs": 1}, {"no_kv_cache": True}],
    ids=["whole", "chunked", "one by one", "no cache"],
)
def test_any_schedule(toy, engines, options):
    engines.append(engine := toy.engine(toy.Executor(recurrent=True), **options))
    read_all(toy, engine, TEXTS, 25)
    toy.idle(engine)
    read_all(toy, engine, TEXTS[::-1], 25)  # on slots that others have left


def test_preempted_and_resumed(toy, engines):
    executor = toy.Executor(num_blocks=14, recurrent=True)
    engines.append(engine := toy.engine(executor, max_step_tokens=20))
    prompts = ["one two", "three four", "five six"]
    seqs = [toy.seq(engine, prompt, 38, ignore_eos=True) for prompt in prompts]
    engine.submit(seqs)
    for seq, prompt in zip(seqs, prompts, strict=True):
        toy.read(seq)
        assert seq.output_ids == toy.answer(prompt, 38, ignore_eos=True)[0]
    assert engine.stats()["preemptions"] > 0


def test_prefixes_are_not_shared(toy, engines):
    engines.append(engine := toy.engine(toy.Executor(recurrent=True), prefix_cache=True))
    prompt = "the same beginning every time"
    for _ in range(2):
        (seq,) = read_all(toy, engine, [prompt], 5)
        assert seq.num_cached_tokens == 0
    assert toy.idle(engine)["blocks_cached"] == 0


def test_a_step_run_again_moves_no_state_twice(toy, engines):
    """The batch fails when every state has been written, so each sequence is run once more."""
    executor = toy.Executor(recurrent=True)

    def fail(batch):
        if batch.num_seqs > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    executor.fail = fail
    engines.append(engine := toy.engine(executor, max_step_tokens=20))
    read_all(toy, engine, TEXTS, 20)
    assert max(map(len, executor.shapes)) > 1


def test_culprit_leaves_the_states_of_others_alone(toy, engines):
    executor = toy.Executor(recurrent=True)
    executor.hold()
    engines.append(engine := toy.engine(executor))
    (bad_id,) = toy.encode("!")

    def fail(batch):
        if bad_id in batch.token_ids.tolist():
            raise RuntimeError("no")

    executor.fail = fail
    good = [toy.seq(engine, text, 30) for text in ("abc", "defgh")]
    bad = toy.seq(engine, "oh!", 30)
    engine.submit([good[0], bad, good[1]])
    executor.let(10_000)
    assert "no" in str(toy.read(bad)[1].error)
    for seq, text in zip(good, ("abc", "defgh"), strict=True):
        toy.read(seq)
        assert seq.output_ids == toy.answer(text, 30)[0]
