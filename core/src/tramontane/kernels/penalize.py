"""Presence, frequency and repetition penalties."""

from __future__ import annotations

import torch
from torch import Tensor


def penalize(
    logits: Tensor,
    ids: Tensor,
    counts: Tensor,
    *,
    presence: float,
    frequency: float,
    repetition: float,
) -> None:
    """Lower the logits of tokens that occur in a context, in place.

    Args:
        logits: [vocab] float32.
        ids: [U] int64 on the CPU, each once; those outside of the vocabulary (placeholders of other
            modalities) are passed over.
        counts: [U] float32 on the CPU, how often each occurs.
        presence, frequency: taken off, once and times ``counts``.
        repetition: what is positive then is divided by this, what is negative multiplied.
    """
    known = ids < logits.shape[0]
    ids, counts = ids[known].to(logits.device), counts[known].to(logits.device)
    values = logits[ids] - frequency * counts - presence
    if repetition != 1:
        values = torch.where(values > 0, values / repetition, values * repetition)
    logits[ids] = values
