"""Drawing from the filtered distribution: temperature, top-k, top-p, min-p, then one draw a row.

The vocabulary is never sorted: top-k selects k tokens, and top-p alone selects ever more until
they hold enough probability. What a row gets follows from its own logits, settings and uniform
number; rows are only computed together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, Self

import torch
from attrs import frozen
from torch import Tensor

from tramontane.kernels.selection import largest

FIRST_NUCLEUS = 256
NUCLEUS_GROWTH = 8
"""Tokens selected at first for top-p without top-k, and by how many times more if too few."""

OFF = 2.0
"""A ``top_p`` that leaves out nothing, whatever the rounding of its sum."""

NUCLEUS = -1
"""In place of a number of tokens to select: what ``top_p`` needs."""


class Drawing(Protocol):
    """How a row is drawn: what `draw` needs of `tramontane.sampling.SamplingParams`.

    Attributes:
        temperature: above 0.
        top_k: tokens that stay, the most likely ones; None for all.
        top_p: a token stays while those that are likelier hold less than this; None for all.
        min_p: share of the highest probability that those which stay exceed; None or 0 for all.
    """

    @property
    def temperature(self) -> float | None: ...
    @property
    def top_k(self) -> int | None: ...
    @property
    def top_p(self) -> float | None: ...
    @property
    def min_p(self) -> float | None: ...


@frozen(eq=False)
class _Rows:
    """Distributions to draw from, [R, vocab], and what belongs to each: [R, 1] in float64."""

    probs: Tensor
    top_p: Tensor
    min_p: Tensor
    uniforms: Tensor

    def take(self, rows: Tensor) -> Self:
        return type(self)(self.probs[rows], self.top_p[rows], self.min_p[rows], self.uniforms[rows])


def draw(logits: Tensor, params: Sequence[Drawing], uniforms: Sequence[float]) -> list[int]:
    """One token a row.

    Args:
        logits: [R, vocab] float32, each row with a finite maximum.
        params: R settings, none of them greedy.
        uniforms: R numbers in [0, 1); what is drawn is a function of them.
    """
    rows = _Rows(
        probs=_probabilities(logits, params),
        top_p=_column(
            [p.top_p if p.top_p is not None and p.top_p < 1 else OFF for p in params], logits
        ),
        min_p=_column([p.min_p or 0.0 for p in params], logits),
        uniforms=_column(uniforms, logits),
    )
    vocab_size = logits.shape[-1]
    groups: dict[int, list[int]] = {}
    for row, p in enumerate(params):
        groups.setdefault(_group(p, vocab_size), []).append(row)
    tokens = torch.empty(len(params), dtype=torch.int64, device=logits.device)
    for size, members in groups.items():
        index = torch.tensor(members, device=logits.device)
        group = rows if len(groups) == 1 else rows.take(index)
        if size == NUCLEUS:
            tokens[index] = _from_nucleus(group, FIRST_NUCLEUS)
        elif size == vocab_size:
            tokens[index] = _from_all(group)
        else:
            tokens[index] = _from_top(group, size)
    chosen: list[int] = tokens.tolist()
    return chosen


def _group(params: Drawing, vocab_size: int) -> int:
    """How many of the most likely tokens can be drawn at most, or `NUCLEUS`."""
    if params.top_k is not None and params.top_k < vocab_size:
        return params.top_k
    return vocab_size if params.top_p in (None, 1) else NUCLEUS


def _probabilities(logits: Tensor, params: Sequence[Drawing]) -> Tensor:
    """softmax(logits / T); shifted first, so that a tiny T overflows nothing."""
    hottest = torch.finfo(logits.dtype).max  # by infinity, a forbidden token's would become NaN
    temperature = _column([min(p.temperature or 1.0, hottest) for p in params], logits)
    shifted = logits - logits.amax(-1, keepdim=True)
    return torch.softmax(shifted / temperature.to(logits.dtype), dim=-1)


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=_wide(like.device), device=like.device)[:, None]


def _wide(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def _from_all(rows: _Rows) -> Tensor:
    """Tokens [R], any of the vocabulary."""
    weights = rows.probs.to(rows.uniforms.dtype)
    if bool((rows.min_p > 0).any()):
        limit = rows.min_p * weights.amax(-1, keepdim=True)
        weights = weights.masked_fill((weights <= limit) & (rows.min_p > 0), 0)
    return _pick(weights, rows.uniforms)


def _from_top(rows: _Rows, size: int) -> Tensor:
    """Tokens [R] among the ``size`` most likely ones."""
    return _from_selected(rows, *largest(rows.probs, size))


def _from_nucleus(rows: _Rows, size: int) -> Tensor:
    """Tokens [R] among as many of the most likely ones as ``top_p`` keeps."""
    size = min(size, rows.probs.shape[-1])
    weights, ids = largest(rows.probs, size)
    tokens = _from_selected(rows, weights, ids)
    if size < rows.probs.shape[-1]:
        mass = weights.cumsum(-1, dtype=rows.top_p.dtype)[:, -1]  # a row's own, unlike a sum
        (lacking,) = torch.nonzero(mass < rows.top_p[:, 0], as_tuple=True)
        if len(lacking):
            tokens[lacking] = _from_nucleus(rows.take(lacking), size * NUCLEUS_GROWTH)
    return tokens


def _from_selected(rows: _Rows, probs: Tensor, ids: Tensor) -> Tensor:
    """Tokens [R] among selected ones, [R, k] with falling probability: top-p, min-p, draw."""
    weights = probs.to(rows.top_p.dtype)
    before = weights.cumsum(-1) - weights
    keep = (before < rows.top_p) & ((weights > rows.min_p * weights[:, :1]) | (rows.min_p == 0))
    place = _pick(weights.masked_fill(~keep, 0), rows.uniforms)
    return torch.gather(ids, 1, place[:, None])[:, 0]


def _pick(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Columns [R], each with the probability that its weight, [R, n], has in its row.

    The last column whose sum of weights to its left is at most ``uniform * total``; a column
    without weight is never it.
    """
    sums = weights.cumsum(-1)
    total = sums[:, -1:]
    target = torch.minimum(uniforms * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(sums, target, right=True)[:, 0]
