"""The sampling steps as one would write them on paper: loops, float64, full sorts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def penalized(logits: Any, context: list[int], params: Any, allowed: Any = None) -> list[float]:
    """Steps 1 to 4 for one row."""
    row = [float(x) for x in logits]
    if params.dry is not None:
        for token, length in longest_repetitions(context, params.dry.breaker_ids).items():
            if length >= params.dry.allowed_length and token < len(row):
                excess = length - params.dry.allowed_length
                row[token] -= params.dry.multiplier * params.dry.base**excess
    for token in range(len(row)):
        count = context.count(token)
        if count:
            row[token] -= count * params.frequency_penalty + params.presence_penalty
            r = params.repetition_penalty
            row[token] = row[token] / r if row[token] > 0 else row[token] * r
    for token, bias in params.logit_bias.items():
        row[token] += bias
    if allowed is not None:
        row = [x if ok else -math.inf for x, ok in zip(row, allowed, strict=True)]
    return row


def longest_repetitions(x: list[int], breakers: frozenset[int]) -> dict[int, int]:
    """Candidate → longest match."""
    n, best = len(x), {}
    for i in range(n - 1):
        if x[i] != x[n - 1] or x[i + 1] in breakers:
            continue
        length = 1
        while (
            length < 50
            and i - length >= 0
            and x[i - length] == x[n - 1 - length]
            and x[i - length] not in breakers
        ):
            length += 1
        best[x[i + 1]] = max(best.get(x[i + 1], 0), length)
    return best


def distribution(row: list[float], params: Any) -> dict[int, float]:
    """Steps 5 to 9: token → probability of being drawn."""
    if params.temperature is None or params.temperature < 1e-7:
        return {int(np.argmax(row)): 1.0}
    scaled = np.array(row, dtype=np.float64) / params.temperature
    probs = np.exp(scaled - scaled.max())
    probs /= probs.sum()
    order = sorted(range(len(row)), key=lambda t: -probs[t])
    if params.top_k is not None:
        order = order[: params.top_k]
    if params.top_p is not None and params.top_p < 1:
        kept, before = [], 0.0
        for token in order:
            if before >= params.top_p:
                break
            kept.append(token)
            before += probs[token]
        order = kept
    if params.min_p:
        order = [t for t in order if probs[t] > params.min_p * probs.max()]
    mass = sum(probs[t] for t in order)
    return {t: float(probs[t] / mass) for t in order if probs[t] > 0}
