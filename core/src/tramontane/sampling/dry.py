"""DRY, the "Don't Repeat Yourself" penalty.

A token is penalized when it would continue a repetition: when the end of the context, of ``L``
tokens, occurred before and was followed by that token there. The penalty is
``multiplier * base ** (L - allowed_length)``.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from tramontane.sampling.params import DryParams

MAX_MATCH_LENGTH = 50
"""Longer repetitions count as this long, which bounds the work for hostile contexts."""


class DryIndex:
    """A growing context, indexed by where each token occurs."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self._positions: dict[int, list[int]] = {}

    def extend(self, tokens: Iterable[int]) -> None:
        """Append tokens to the context."""
        for token in tokens:
            self._positions.setdefault(token, []).append(len(self.tokens))
            self.tokens.append(token)

    def matches(self, breaker_ids: frozenset[int]) -> dict[int, int]:
        """Token → length of the longest repetition that it would continue."""
        lengths: dict[int, int] = {}
        if not self.tokens:
            return lengths
        for position in self._positions[self.tokens[-1]][:-1]:
            follower = self.tokens[position + 1]
            if follower not in breaker_ids:
                length = self._match_length(position, breaker_ids)
                lengths[follower] = max(length, lengths.get(follower, 0))
        return lengths

    def _match_length(self, position: int, breaker_ids: frozenset[int]) -> int:
        """Tokens that agree, going back from ``position`` and from the end of the context."""
        last = len(self.tokens) - 1
        length = 1
        while length < MAX_MATCH_LENGTH and length <= position:
            token = self.tokens[position - length]
            if token != self.tokens[last - length] or token in breaker_ids:
                break
            length += 1
        return length


def penalize_repetition(logits: Tensor, index: DryIndex, params: DryParams) -> None:
    """Apply DRY to one row of logits, [vocab], in place."""
    for token, length in index.matches(params.breaker_ids).items():
        if length >= params.allowed_length and token < logits.shape[0]:
            logits[token] -= _penalty(params, length)


def _penalty(params: DryParams, length: int) -> float:
    try:
        return params.multiplier * params.base ** (length - params.allowed_length)
    except OverflowError:
        return float("inf")
