"""Presence, frequency and repetition penalties, and logit bias."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from tramontane.errors import EngineError
from tramontane.sampling.params import SamplingParams


class TokenCounts:
    """How often each token occurs in a growing context.

    Attributes:
        ids: [U] int64, the tokens that occur.
        counts: [U] float32, how often.
    """

    def __init__(self, device: torch.device) -> None:
        self.ids = torch.empty(0, dtype=torch.int64, device=device)
        self.counts = torch.empty(0, dtype=torch.float32, device=device)
        self._places: dict[int, int] = {}

    def add(self, tokens: Iterable[int]) -> None:
        """Count further tokens."""
        places = self._places
        new: list[int] = []
        where: list[int] = []
        for token in tokens:
            if token not in places:
                places[token] = len(places)
                new.append(token)
            where.append(places[token])
        if not where:
            return
        device = self.ids.device
        if new:
            self.ids = torch.cat((self.ids, torch.tensor(new, device=device)))
            self.counts = torch.cat((self.counts, torch.zeros(len(new), device=device)))
        ones = torch.ones(len(where), device=device)
        self.counts.index_add_(0, torch.tensor(where, device=device), ones)


def penalize_occurrence(logits: Tensor, occurring: TokenCounts, params: SamplingParams) -> None:
    """Apply the three penalties to one row of logits, [vocab], in place.

    Ids outside of the vocabulary (placeholders of other modalities) are passed over.
    """
    known = occurring.ids < logits.shape[0]
    ids, counts = occurring.ids[known], occurring.counts[known]
    values = logits[ids] - counts * params.frequency_penalty - params.presence_penalty
    if params.repetition_penalty != 1:
        shrunk = values / params.repetition_penalty
        values = torch.where(values > 0, shrunk, values * params.repetition_penalty)
    logits[ids] = values


def add_bias(logits: Tensor, bias: dict[int, float]) -> None:
    """Add ``logit_bias`` to one row of logits, [vocab], in place.

    Raises:
        EngineError: an id is not in the vocabulary.
    """
    if max(bias) >= logits.shape[0]:
        raise EngineError(
            f"logit_bias names token {max(bias)}; the model's vocabulary ends at "
            f"{logits.shape[0] - 1}"
        )
    ids = torch.tensor(list(bias), device=logits.device)
    logits[ids] += torch.tensor(list(bias.values()), dtype=logits.dtype, device=logits.device)
