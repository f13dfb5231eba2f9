"""Log probabilities: natural logarithms, of the distribution at temperature 1 after penalties,
bias and grammar, and before any token is left out, as in OpenAI's API."""

from __future__ import annotations

import torch
from torch import Tensor

from tramontane.kernels.selection import largest

Top = tuple[tuple[int, float], ...]


def logprobs_of(logits: Tensor, chosen: list[int], num_top: list[int]) -> list[tuple[float, Top]]:
    """Log probabilities of chosen tokens and of the most likely ones.

    Args:
        logits: [N, vocab].
        chosen: N token ids.
        num_top: N lengths of the lists of most likely tokens.

    Returns:
        For each row, the chosen token's log probability and ``(id, logprob)`` of the most likely
        ones, falling, without those that cannot occur at all.
    """
    logprobs = torch.log_softmax(logits, dim=-1)
    own = torch.gather(logprobs, 1, torch.tensor(chosen, device=logits.device)[:, None])[:, 0]
    values, ids = largest(logprobs, min(max(num_top), logits.shape[-1]))
    tops = zip(ids.tolist(), values.tolist(), num_top, strict=True)
    return list(zip(own.tolist(), (_likely(*top) for top in tops), strict=True))


def _likely(ids: list[int], logprobs: list[float], count: int) -> Top:
    pairs = zip(ids[:count], logprobs[:count], strict=True)
    return tuple((token, logprob) for token, logprob in pairs if logprob > float("-inf"))
