"""What penalties go by, the tokens of a context, and logit bias."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from tramontane.errors import EngineError


class TokenCounts:
    """How often each token occurs in a growing context."""

    def __init__(self) -> None:
        self._places: dict[int, int] = {}
        self._ids = np.empty(256, np.int64)
        self._counts = np.zeros(256, np.float32)

    def add(self, tokens: Iterable[int]) -> None:
        """Count further tokens."""
        places = self._places
        for token, count in Counter(tokens).items():
            place = places.setdefault(token, len(places))
            if place == len(self._ids):
                self._ids = np.concatenate((self._ids, np.empty_like(self._ids)))
                self._counts = np.concatenate((self._counts, np.zeros_like(self._counts)))
            self._ids[place] = token
            self._counts[place] += count

    @property
    def ids(self) -> Tensor:
        """The tokens that occur, [U] int64."""
        return torch.from_numpy(self._ids[: len(self._places)])

    @property
    def counts(self) -> Tensor:
        """How often each of `ids` does, [U] float32."""
        return torch.from_numpy(self._counts[: len(self._places)])


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
