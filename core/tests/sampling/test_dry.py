"""DRY by worked examples; the random comparison is in test_sampler.py."""

from __future__ import annotations

import pytest
import torch

from tramontane.sampling.dry import DryIndex, penalize_repetition
from tramontane.sampling.params import DryParams, breaker_ids

A, B, C, D, E, STOP = range(6)
NONE: frozenset[int] = frozenset()


def index_of(tokens: list[int]) -> DryIndex:
    index = DryIndex()
    index.extend(tokens)
    return index


@pytest.mark.parametrize(
    ("context", "breakers", "expected"),
    [
        ([], NONE, {}),
        ([A], NONE, {}),
        ([A, B], NONE, {}),
        ([A, B, A], NONE, {B: 1}),
        ([A, B, C, A, B], NONE, {C: 2}),
        ([A, B, C, D, A, B, C], NONE, {D: 3}),
        ([E, B, C, A, B], NONE, {C: 1}),
        ([A, B, C, A, B, D, A, B], NONE, {C: 2, D: 2}),
        ([A, B, C, E, B, C, A, B], NONE, {C: 2}),
        ([A, A, A, A], NONE, {A: 3}),
        ([A, STOP, B, C, A, STOP, B], frozenset({STOP}), {C: 1}),
        ([A, B, STOP, A, B], frozenset({STOP}), {}),
        ([STOP, A, STOP], frozenset({STOP}), {A: 1}),
    ],
)
def test_match_lengths(
    context: list[int], breakers: frozenset[int], expected: dict[int, int]
) -> None:
    assert index_of(context).matches(breakers) == expected


def test_long_repetitions_count_as_fifty() -> None:
    assert index_of([A] * 200).matches(NONE) == {A: 50}


def test_penalty_grows_by_base_from_the_allowed_length() -> None:
    """A B C D | A B C: D would continue a repetition of three."""
    logits = torch.zeros(6)
    index = index_of([A, B, C, D, A, B, C])
    penalize_repetition(logits, index, DryParams(multiplier=0.8, base=1.75, allowed_length=2))
    assert logits.tolist() == pytest.approx([0, 0, 0, -0.8 * 1.75, 0, 0])
    logits = torch.zeros(6)
    penalize_repetition(logits, index, DryParams(multiplier=0.8, allowed_length=3))
    assert logits.tolist() == pytest.approx([0, 0, 0, -0.8, 0, 0])
    logits = torch.zeros(6)
    penalize_repetition(logits, index, DryParams(multiplier=0.8, allowed_length=4))
    assert logits.tolist() == [0] * 6


def test_overflowing_penalty_forbids_the_token() -> None:
    logits = torch.zeros(6)
    penalize_repetition(logits, index_of([A] * 60), DryParams(multiplier=1.0, base=1e30))
    assert logits.tolist() == [float("-inf"), 0, 0, 0, 0, 0]


def test_breakers_are_found_inside_of_text() -> None:
    """A tokenizer that merges a line break with what is before it."""
    vocabulary = {"a": [1], "a\n": [7], "a:": [1, 8], "a**": [1, 9, 9]}

    def encode(text: str, add_special_tokens: bool = True) -> list[int]:
        assert not add_special_tokens
        return vocabulary[text]

    assert breaker_ids(["\n", ":", "**"], encode) == {7, 8, 9}
