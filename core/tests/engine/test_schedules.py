"""Random schedules: no block is lost or owned twice, and everybody gets the right answer."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tramontane.engine.block_manager import BlockManager
from tramontane.engine.scheduler import Scheduler
from tramontane.engine.sequence import Sequence, Status
from tramontane.sampling.sampler import SampledToken

MAX_LEN = 40
NUM_BLOCKS = 12  # of 4 tokens: enough for one sequence of MAX_LEN and a little more


def check_blocks(scheduler: Scheduler) -> None:
    """Every block is free, idle or in use, and its users are those who say so."""
    blocks = scheduler.blocks
    users = Counter(block for seq in scheduler.running for block in seq.block_ids)
    assert [users[block] for block in range(blocks.num_blocks)] == blocks._users
    index = blocks._index
    idle = [] if index is None else list(index._idle)
    assert sorted([*blocks._free, *idle, *users]) == list(range(blocks.num_blocks))
    if index is not None:
        assert index._block_of == {key: block for block, key in index._key_of.items()}
        assert not set(blocks._free) & set(index._key_of)
        for seq in scheduler.running:
            for i, block in enumerate(seq.block_ids):
                if users[block] > 1:
                    assert index._key_of[block] == seq.block_keys[i]
                    assert i < seq.num_hashed, "a shared block must be full and computed"
    for key, owner in blocks._promised.items():
        assert owner in scheduler.running
        assert key in owner.block_keys[owner.num_hashed :]


def check_rows(scheduler: Scheduler) -> None:
    tables = scheduler._writer._tables
    for row, seq in enumerate(scheduler.running):
        assert (seq.row, seq.status) == (row, Status.RUNNING)
        assert [block for block in tables[row].tolist() if block >= 0] == seq.block_ids
    arrivals = [seq.arrival for seq in scheduler.running]
    assert arrivals == sorted(arrivals)
    assert all(seq.row == -1 and not seq.block_ids for seq in scheduler.waiting)


def check_states(scheduler: Scheduler) -> None:
    """Every pair of state slots is free or a running sequence's."""
    owned = [seq.state_slots for seq in scheduler.running] if scheduler._recurrent else []
    slots = sorted(slot for pair in [*scheduler._free_states, *owned] for slot in pair)
    assert slots == list(range(2 * scheduler._max_seqs))


class Driver:
    """An engine without its thread."""

    def __init__(self, toy, *, prefix_cache, max_seqs, max_step_tokens, recompute, recurrent=False):
        self.toy = toy
        self.executor = toy.Executor(NUM_BLOCKS, recurrent=recurrent)
        self.max_step_tokens = max_seqs * MAX_LEN if recompute else max_step_tokens
        blocks = BlockManager(NUM_BLOCKS, toy.BLOCK_SIZE, prefix_cache=prefix_cache)
        self.scheduler = Scheduler(
            blocks,
            max_seqs=max_seqs,
            max_step_tokens=max_step_tokens,
            max_seq_len=MAX_LEN,
            recompute=recompute,
            recurrent=recurrent,
        )
        self.seqs: list[Sequence] = []

    def submit(self, prompt, max_tokens):
        seq = Sequence.of(self.toy.tokenizer, prompt, self.toy.params(max_tokens))
        seq.arrival = len(self.seqs)
        self.scheduler.blocks.hash_prompt(seq)
        self.seqs.append(seq)
        self.scheduler.add(seq)

    def cancel(self, number):
        if self.seqs:
            seq = self.seqs[number % len(self.seqs)]
            if seq.status is not Status.FINISHED:
                self.scheduler.remove(seq)
                seq.finish("canceled")

    def step(self):
        if not self.scheduler.has_work:
            return
        step = self.scheduler.schedule()
        assert step.seqs, "there was work, but nobody ran"
        assert sum(step.query_lens) <= self.max_step_tokens
        check_blocks(self.scheduler)
        check_rows(self.scheduler)
        check_states(self.scheduler)
        logits = self.executor.forward(step.batch)
        for seq, length in zip(step.seqs, step.query_lens, strict=True):
            self.scheduler.computed(seq, length)
        for seq, token in zip(step.sampling, logits.argmax(-1).tolist(), strict=True):
            reason = seq.append(SampledToken(token), frozenset([self.toy.EOS]), MAX_LEN)
            if reason is not None:
                self.scheduler.remove(seq)
                seq.finish(reason)
        check_blocks(self.scheduler)


# Long prompts that share beginnings and end differently.
TOKENS = st.builds(
    lambda length, kind, end: [kind] * length + [end],
    st.integers(0, 29),
    st.integers(0, 1),
    st.integers(0, 3),
)
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), TOKENS, st.integers(1, 30)),
        st.tuples(st.just("cancel"), st.integers(0, 20)),
        st.tuples(st.just("step"), st.integers(1, 6)),
    ),
    min_size=5,
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(
    operations=OPERATIONS,
    prefix_cache=st.sampled_from([True, False, 1, 3]),
    max_seqs=st.integers(1, 5),
    spare=st.integers(1, 20),
    recompute=st.sampled_from([False, False, False, True]),
    recurrent=st.booleans(),
)
def test_random_schedules(toy, operations, prefix_cache, max_seqs, spare, recompute, recurrent):
    driver = Driver(
        toy,
        prefix_cache=False if recompute or recurrent else prefix_cache,
        max_seqs=max_seqs,
        max_step_tokens=max_seqs + spare,
        recompute=recompute,
        recurrent=recurrent,
    )
    for name, *arguments in operations:
        if name == "step":
            for _ in range(arguments[0]):
                driver.step()
        else:
            getattr(driver, name)(*arguments)
            check_blocks(driver.scheduler)
    for _ in range(20_000):
        if not driver.scheduler.has_work:
            break
        driver.step()
    assert not driver.scheduler.has_work, "somebody starves"
    for seq in driver.seqs:
        limit = min(seq.params.max_tokens, MAX_LEN - len(seq.prompt_ids))
        ids, text, reason = toy.answer(seq.prompt_ids, limit)
        got = "".join(delta.text for delta in seq.output.drain())
        if seq.finish_reason == "canceled":
            assert seq.output_ids == ids[: len(seq.output_ids)]
        else:
            assert (seq.output_ids, got, seq.finish_reason) == (ids, text, reason)
    assert driver.scheduler.blocks.num_used == 0
    check_states(driver.scheduler)


def test_oldest_gets_on_whatever_comes_after(toy):
    driver = Driver(toy, prefix_cache=True, max_seqs=4, max_step_tokens=16, recompute=False)
    driver.submit([0] * 20, 20)
    first = driver.seqs[0]
    for i in range(40):
        driver.submit([1] * (1 + i % 9), 30)
        before = first.num_tokens
        driver.step()
        if first.status is Status.FINISHED:
            break
        assert first.num_tokens == before + 1 or first.num_computed < 20
    assert first.status is Status.FINISHED


def test_recomputation_starts_from_blocks_that_are_still_there(toy):
    blocks = BlockManager(8, toy.BLOCK_SIZE)
    seq = Sequence.of(toy.tokenizer, [1] * 10, toy.params())
    blocks.hash_prompt(seq)
    assert blocks.admit(seq, reserve=0)
    seq.num_computed = 10
    blocks.computed(seq)
    kept = seq.block_ids[:2]
    blocks.release(seq, finished=False)
    assert (blocks.num_used, blocks.num_cached, blocks.num_available) == (0, 2, 8)
    assert blocks.admit(seq, reserve=0)
    assert (seq.block_ids[:2], seq.num_computed) == (kept, 8)


def test_least_recently_used_ends_are_evicted_first(toy):
    blocks = BlockManager(6, toy.BLOCK_SIZE)

    def run(prompt):
        seq = Sequence.of(toy.tokenizer, prompt, toy.params())
        blocks.hash_prompt(seq)
        assert blocks.admit(seq, reserve=0)
        found = seq.num_computed
        seq.num_computed = len(prompt)
        blocks.computed(seq)
        blocks.release(seq, finished=True)
        return found

    assert run([1] * 12) == 0
    assert run([2] * 12) == 0
    assert run([1] * 13) == 12  # used again, and evicts the end of the older one
    assert blocks.metrics.prefix_evictions == 1
    assert run([2] * 12) == 8
    assert blocks.metrics.prefix_evictions == 1


@pytest.mark.parametrize("reserve", [0, 1])
def test_nothing_changes_when_blocks_do_not_suffice(toy, reserve):
    blocks = BlockManager(4, toy.BLOCK_SIZE)
    seq = Sequence.of(toy.tokenizer, [1] * 16, toy.params())
    assert blocks.admit(seq, reserve=reserve) is (reserve == 0)
    if reserve:
        assert (seq.block_ids, blocks.num_available) == ([], 4)
    else:
        assert not blocks.grow(seq, 17)
        assert (len(seq.block_ids), blocks.num_available) == (4, 0)
