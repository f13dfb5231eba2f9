"""A toy model whose next token depends on every token of the sequence as the cache holds it.

Each slot stores a number made from token, position and *everything* the block table led to before;
a wrong block, a slot written by a stranger or a position off by one changes all text after it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers

from tramontane.engine.engine import Engine
from tramontane.engine.output import Delta
from tramontane.engine.sequence import Sequence
from tramontane.protocols.batch import ForwardBatch
from tramontane.sampling.params import SamplingParams
from tramontane.text.tokenizer import Tokenizer

BLOCK_SIZE = 4
LETTERS = "abcdefghijklmnopqrstuvwxyz .,!\u0120"[:-1].replace(" ", "\u0120")
EOS = len(LETTERS)
VOCAB_SIZE = EOS + 1
_MASK = (1 << 64) - 1


def mix(token: int, position: int, fold: int) -> int:
    """What a slot stores."""
    x = (fold + 0x9E3779B97F4A7C15 * (token + 1) + 0xD1B54A32D192ED03 * (position + 1)) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def choose(state: int) -> int:
    return (state >> 20) % VOCAB_SIZE


class ToyExecutor:
    """The model. ``hold`` makes each forward wait for ``let``; ``fail`` may raise for a batch, when
    all that it writes has been written.

    A recurrent one has what led to a token from a state slot, not from the blocks. Slots that
    nobody has written hold rubbish.
    """

    def __init__(
        self, num_blocks: int = 64, block_size: int = BLOCK_SIZE, *, recurrent: bool = False
    ) -> None:
        self.recurrent = recurrent
        self.folds = [7**i for i in range(64)]
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.states = np.zeros(num_blocks * block_size, np.uint64)
        self.fail: Callable[[ForwardBatch], None] | None = None
        self.closed = False
        self.shapes: list[list[int]] = []
        self.delay_secs = 0.0
        self._gate: threading.Semaphore | None = None
        self.entered = threading.Semaphore(0)

    def hold(self) -> None:
        self._gate = threading.Semaphore(0)

    def let(self, num_steps: int = 1) -> None:
        assert self._gate is not None
        self._gate.release(num_steps)

    def forward(self, batch: ForwardBatch) -> torch.Tensor:
        self.entered.release()
        if self._gate is not None:
            self._gate.acquire()
        if self.delay_secs:
            time.sleep(self.delay_secs)
        self.shapes.append(list(batch.query_lens))
        self._check(batch)
        last: list[int] = []  # state of each packed token
        for i, (query_len, kv_len) in enumerate(zip(batch.query_lens, batch.kv_lens, strict=True)):
            begin = int(batch.query_starts[i])
            places = np.arange(kv_len)
            blocks = batch.block_tables[i].numpy()[places // self.block_size].astype(np.int64)
            slots = blocks * self.block_size + places % self.block_size
            start = kv_len - query_len
            if self.recurrent:
                read, write = batch.state_slots[i].tolist()
                fold = self.folds[read] if start else 0
            else:
                weights = (2 * places[:start] + 1).astype(np.uint64)
                fold = int((self.states[slots[:start]] * weights).sum())
            for j in range(query_len):
                position = start + j
                state = mix(int(batch.token_ids[begin + j]), position, fold)
                self.states[slots[position]] = state
                fold = (fold + state * (2 * position + 1)) & _MASK
                last.append(state)
            if self.recurrent:
                self.folds[write] = fold
        if self.fail is not None:
            self.fail(batch)
        logits = torch.zeros(len(batch.logit_rows), VOCAB_SIZE)
        for r, row in enumerate(batch.logit_rows.tolist()):
            logits[r, choose(last[row])] = 5.0
        return logits

    def _check(self, batch: ForwardBatch) -> None:
        """The batch is consistent in itself."""
        slots = batch.slots.tolist()
        assert len(set(slots)) == len(slots), "two tokens would be written to one slot"
        assert batch.query_starts.tolist() == np.cumsum([0, *batch.query_lens]).tolist()
        assert batch.context_lens.tolist() == batch.kv_lens
        assert (batch.state_slots is not None) == self.recurrent
        if self.recurrent:
            states = batch.state_slots.flatten().tolist()
            assert len(set(states)) == len(states), "two sequences share a state"
        for i, (query_len, kv_len) in enumerate(zip(batch.query_lens, batch.kv_lens, strict=True)):
            begin = int(batch.query_starts[i])
            table = batch.block_tables[i].tolist()
            for j in range(query_len):
                position = kv_len - query_len + j
                assert int(batch.positions[begin + j]) == position
                expected = table[position // self.block_size] * self.block_size
                assert slots[begin + j] == expected + position % self.block_size
            owned = [block for block in table if block >= 0]
            assert len(set(owned)) == len(owned)
            assert all(block == -1 for block in table[len(owned) :])

    def copy_blocks(self, pairs: list[tuple[int, int]]) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self.closed = True


class Toy:
    """Builds engines around the toy model and knows what they must answer."""

    BLOCK_SIZE = BLOCK_SIZE
    VOCAB_SIZE = VOCAB_SIZE
    EOS = EOS
    Executor = ToyExecutor

    def __init__(self) -> None:
        vocab = {letter: i for i, letter in enumerate(LETTERS)}
        backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        backend.add_special_tokens(["<eos>"])
        self.tokenizer = Tokenizer(backend, eos_token="<eos>")
        assert backend.token_to_id("<eos>") == EOS

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def answer(
        self, prompt: str | list[int], max_tokens: int, *, ignore_eos: bool = False
    ) -> tuple[list[int], str, str]:
        """Token ids, text and finish reason that any schedule must give."""
        ids = self.encode(prompt) if isinstance(prompt, str) else list(prompt)
        fold = state = 0
        for position, token in enumerate(ids):
            state = mix(token, position, fold)
            fold = (fold + state * (2 * position + 1)) & _MASK
        output: list[int] = []
        reason = "length"
        while len(output) < max_tokens:
            token = choose(state)
            output.append(token)
            if token == EOS and not ignore_eos:
                reason = "stop"
                break
            position = len(ids) + len(output) - 1
            state = mix(token, position, fold)
            fold = (fold + state * (2 * position + 1)) & _MASK
        return output, self.text(output), reason

    def text(self, token_ids: list[int]) -> str:
        return "".join(LETTERS[i] for i in token_ids if i != EOS).replace("\u0120", " ")

    def params(self, max_tokens: int | None = 20, **fields: Any) -> SamplingParams:
        return SamplingParams(max_tokens=max_tokens, **fields)

    def engine(self, executor: ToyExecutor | None = None, **options: Any) -> Engine:
        executor = ToyExecutor() if executor is None else executor
        options = {"max_seq_len": 200, "block_size": executor.block_size} | options
        return Engine(executor, tokenizer=self.tokenizer, eos_token_ids=[EOS], **options)

    def seq(
        self,
        engine: Engine,
        prompt: str | list[int],
        max_tokens: int | None = 20,
        **options: Any,
    ) -> Sequence:
        names = ("output", "index", "ignore_eos", "cache_root")
        passed = {name: options.pop(name) for name in names if name in options}
        ids = self.encode(prompt) if isinstance(prompt, str) else prompt
        return engine.sequence(ids, self.params(max_tokens, **options), **passed)

    def read(self, seq: Sequence, timeout: float = 20.0) -> tuple[str, Delta, list[Delta]]:
        """Whole text, last delta, all deltas."""
        deltas: list[Delta] = []
        while not deltas or deltas[-1].finish_reason is None:
            deltas.append(seq.output.get(timeout))
        return "".join(delta.text for delta in deltas), deltas[-1], deltas

    def idle(self, engine: Engine, timeout: float = 10.0) -> dict[str, object]:
        """Wait until the engine has let go of everything; its counters."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            stats = engine.stats()
            if not stats["running"] and not stats["waiting"] and not stats["blocks_used"]:
                return stats
            time.sleep(0.002)
        raise AssertionError(f"not idle: {engine.stats()}")


@pytest.fixture(scope="session")
def toy() -> Toy:
    return Toy()


@pytest.fixture
def engines() -> Iterator[list[Engine]]:
    """Engines put in here are closed after the test."""
    opened: list[Engine] = []
    yield opened
    for engine in opened:
        executor = engine._executor
        if isinstance(executor, ToyExecutor) and executor._gate is not None:
            executor.let(10_000)
        engine.close()
