"""Batches of the training text: token rows of like length, with the weight of each token's loss."""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import torch
from text import BOS, END, dialogues, render
from tokenizer import SPECIAL, VISIBLE
from tokenizers import Tokenizer
from torch import Tensor

# What the user writes is mostly chance; what the assistant writes counts, and its digits most,
# since they carry the arithmetic and the arguments of tool calls.
PROMPT_WEIGHT, ANSWER_WEIGHT, DIGIT_WEIGHT = 0.05, 1.0, 3.0
# Rows of random chunks that come again mean nothing, but teach to find what stood there before,
# which tool calls need, in a fraction of the text it would take otherwise.
EARLY_REPETITION_SHARE, LATE_REPETITION_SHARE, EARLY_STEPS = 0.14, 0.05, 1500
BUFFER = 1024


@dataclass(frozen=True)
class Row:
    """Token ids and, for each, the weight of the loss of predicting it."""

    ids: list[int]
    weights: list[float]


def dialogue_row(ids: list[int], tokenizer: Tokenizer) -> Row:
    """Return the row of a rendered dialogue."""
    assistant, end = tokenizer.token_to_id("<|assistant|>"), tokenizer.token_to_id(END)
    digits = {tokenizer.token_to_id(digit) for digit in "0123456789"}
    inside = assistant not in ids  # a plain story counts whole
    weights = []
    for token in ids:
        answer_weight = DIGIT_WEIGHT if token in digits else ANSWER_WEIGHT
        weights.append(answer_weight if inside else PROMPT_WEIGHT)
        inside = token == assistant or (inside and token != end)
    return Row(ids, weights)


def repetition_row(random: Random, tokenizer: Tokenizer) -> Row:
    """Return chunks of random tokens in random order, only what can be foreseen weighing."""
    first, last = len(SPECIAL), tokenizer.get_vocab_size() - len(VISIBLE) - 1
    chunks = [
        [random.randint(first, last) for _ in range(random.randint(3, 12))]
        for _ in range(random.randint(1, 5))
    ]
    ids, weights = [tokenizer.token_to_id(BOS)], [0.0]
    seen: set[int] = set()
    while len(ids) < 100:
        chunk_idx = random.randrange(len(chunks))
        chunk = chunks[chunk_idx]
        ids += chunk
        weights += [0.0] + [float(chunk_idx in seen)] * (len(chunk) - 1)
        seen.add(chunk_idx)
    return Row(ids, weights)


def batches(
    tokenizer: Tokenizer, seed: int, budget: int, context: int, step: int
) -> Iterator[list[Row]]:
    """Yield a batch of rows of like length for each step from `step` on.

    A batch has at most `budget` tokens with its padding, and no row is longer than `context`.
    """
    random = Random(seed)
    stream = dialogues(seed)
    while True:
        share = EARLY_REPETITION_SHARE if step < EARLY_STEPS else LATE_REPETITION_SHARE
        rows = []
        for _ in range(BUFFER):
            if random.random() < share:
                rows.append(repetition_row(random, tokenizer))
            else:
                encoding = tokenizer.encode(render(next(stream)), add_special_tokens=False)
                rows.append(dialogue_row(encoding.ids[:context], tokenizer))
        rows.sort(key=lambda row: len(row.ids))
        ready: list[list[Row]] = [[]]
        for row in rows:
            if len(row.ids) * (len(ready[-1]) + 1) > budget:
                ready.append([])
            ready[-1].append(row)
        random.shuffle(ready)
        yield from ready
        step += len(ready)


def tensors(rows: list[Row]) -> tuple[Tensor, Tensor]:
    """Return tokens `[B, T]` and the weight of each token's loss, zero for padding."""
    length = max(len(row.ids) for row in rows)
    tokens = torch.zeros(len(rows), length, dtype=torch.long)
    weights = torch.zeros(len(rows), length)
    for row_idx, row in enumerate(rows):
        tokens[row_idx, : len(row.ids)] = torch.tensor(row.ids)
        weights[row_idx, : len(row.ids)] = torch.tensor(row.weights)
    return tokens, weights


def sample(tokenizer: Tokenizer, seed: int, num_rows: int = 300, length: int = 64) -> Tensor:
    """Return rows of the first `length` tokens, half of them repetitions: `[num_rows, length]`."""
    random, stream = Random(seed), dialogues(seed)
    rows = [repetition_row(random, tokenizer).ids[:length] for _ in range(num_rows // 2)]
    while len(rows) < num_rows:
        ids = tokenizer.encode(render(next(stream)), add_special_tokens=False).ids
        if len(ids) >= length:
            rows.append(ids[:length])
    return torch.tensor(rows)
