"""From the hidden states of a text's tokens to one vector: the modules that sentence-transformers
(https://sbert.net, Reimers and Gurevych, arXiv:1908.10084) puts after the language model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _weighted_mean(h: Tensor) -> Tensor:
    """Mean in which the n-th token weighs n times as much as the first (SGPT, arXiv:2202.08904)."""
    weights = torch.arange(1, len(h) + 1, dtype=h.dtype, device=h.device)
    return weights @ h / weights.sum()


POOLING_MODES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "cls": lambda h: h[0],
    "max": lambda h: h.amax(0),
    "mean": lambda h: h.mean(0),
    "mean_sqrt_len_tokens": lambda h: h.sum(0) / len(h) ** 0.5,
    "weightedmean": _weighted_mean,
    "lasttoken": lambda h: h[-1],
}
"""Name → one sequence [length, hidden] to its vector [hidden]."""


class Pooling(nn.Module):
    """Tokens of each sequence to one vector.

    Args:
        modes: of `POOLING_MODES`; the vectors of several are put end to end.
    """

    def __init__(self, modes: Sequence[str]) -> None:
        super().__init__()
        self.modes = tuple(modes)

    def forward(self, hidden: Tensor, lengths: Sequence[int]) -> Tensor:
        """Pool packed sequences.

        Args:
            hidden: [T, hidden].
            lengths: tokens of each of the B sequences.

        Returns:
            [B, hidden * len(modes)] float32.
        """
        sequences = torch.split(hidden.float(), list(lengths))
        pools = [POOLING_MODES[mode] for mode in self.modes]
        return torch.stack([torch.cat([pool(h) for pool in pools]) for h in sequences])


class Dense(nn.Module):
    """A linear layer and an activation.

    Args:
        in_features, out_features: widths.
        bias: whether the layer has one.
        act: the activation.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool, act: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features, bias=bias)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.linear(x))


class Normalize(nn.Module):
    """Every vector to length one."""

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1)
