"""Fits of groups of weights to codes with a scale, by weighted least squares, in torch.

The same method as the native encoders (``native/fit.h``): a grid of scales is tried, each gives
codes, the codes give a better scale, and the best is refined by doing the same again (Lloyd, "Least
squares quantization in PCM", 1982, in one dimension). ``G`` groups of ``n`` weights.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Coder = Callable[[Tensor], Tensor]
"""Weights in units of their scale → the nearest value that a code stands for."""


def inverse(x: Tensor) -> Tensor:
    """1 / x, and 0 for 0."""
    return torch.where(x == 0, torch.zeros_like(x), 1 / x)


def integers(low: int, high: int) -> Coder:
    """Codes that are whole numbers ``low`` … ``high``."""
    return lambda x: x.round().clamp(low, high)


class AffineFit:
    """x ≈ a·q + b with codes q from 0 to ``levels``, a ≥ 0 and b ≤ 0.

    Args:
        x, w: weights and what their errors count, [G, n].
        levels: the largest code.
    """

    def __init__(self, x: Tensor, w: Tensor, levels: int) -> None:
        self.x, self.w, self.levels = x, w, levels
        self.sum_w = w.sum(-1)
        self.sum_x = (w * x).sum(-1)

    def search(self, start: float, stop: float, step: float) -> tuple[Tensor, Tensor, Tensor]:
        """The best a and b, and Σ w·q²; scales spread a group over levels + start … stop."""
        low = self.x.amin(-1).clamp(max=0)
        spread = inverse(self.x.amax(-1).clamp(min=0) - low)
        zero = torch.zeros_like(low)
        best = (zero, low, torch.full_like(low, torch.inf), zero)
        for t in _grid(start, stop, step):
            best = self._better(best, self._solve((self.levels + t) * spread, low))
        for _ in range(2):
            best = self._better(best, self._solve(inverse(best[0]), best[1]))
        return best[0], best[1], best[3]

    def offset(self, a: Tensor, b: Tensor) -> Tensor:
        """The best -b for a scale that is settled."""
        for _ in range(2):
            q = self._codes(inverse(a), b)
            b = ((self.sum_x - a * (self.w * q).sum(-1)) * inverse(self.sum_w)).clamp(max=0)
        return -b

    def _codes(self, scale: Tensor, b: Tensor) -> Tensor:
        return ((self.x - b[:, None]) * scale[:, None]).round().clamp(0, self.levels)

    def _solve(self, scale: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        q = self._codes(scale, b)
        wq = self.w * q
        s_q, s_qq, s_xq = wq.sum(-1), (wq * q).sum(-1), (wq * self.x).sum(-1)
        sw, sx = self.sum_w, self.sum_x
        det = sw * s_qq - s_q * s_q
        alone = s_xq * inverse(s_qq)
        proper = det > 1e-9 * sw * s_qq
        a = torch.where(proper, (sw * s_xq - sx * s_q) * inverse(det), alone)
        b = torch.where(proper, (sx - a * s_q) * inverse(sw), 0)
        a = torch.where(b > 0, alone, a)
        b = b.clamp(max=0)
        below = a < 0
        a = a.clamp(min=0)
        b = torch.where(below, (sx * inverse(sw)).clamp(max=0), b)
        error = a * a * s_qq + b * b * sw + 2 * a * b * s_q - 2 * a * s_xq - 2 * b * sx
        return a, b, error, s_qq

    @staticmethod
    def _better(
        best: tuple[Tensor, ...], other: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        less = other[2] < best[2]
        a, b, error, qq = (torch.where(less, o, s) for o, s in zip(other, best, strict=True))
        return a, b, error, qq


def fit_scale(
    x: Tensor, w: Tensor, code: Coder, end: float, start: float, stop: float, step: float
) -> tuple[Tensor, Tensor]:
    """x ≈ a·code(x / a): the best a of either sign, and Σ w·q², both [G].

    Scales put the largest weight of a group at ``end`` + ``start`` … ``stop``.
    """
    largest = x.gather(-1, x.abs().argmax(-1, keepdim=True)).squeeze(-1)
    unit = inverse(largest)
    best = torch.zeros_like(largest), torch.zeros_like(largest), torch.zeros_like(largest)

    def tried(scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q = code(x * scale[:, None])
        wq = w * q
        qq, xq = (wq * q).sum(-1), (wq * x).sum(-1)
        a = xq * inverse(qq)
        gain = a * xq
        more = gain > best[1]
        return torch.where(more, a, best[0]), gain.maximum(best[1]), torch.where(more, qq, best[2])

    for t in _grid(start, stop, step):
        best = tried((end + t) * unit)
    for _ in range(2):
        best = tried(inverse(best[0]))
    return best[0], best[2]


def fit_scales(
    values: Tensor, weights: Tensor, low: int, high: int, end: int
) -> tuple[Tensor, Tensor]:
    """One scale for the scales of a block.

    Args:
        values: [B, k].
        weights: what their errors count, [B, k].
        low, high: smallest and largest code.
        end: the code that the value largest in magnitude is put near.

    Returns:
        The scale [B], as a half and back, and codes [B, k].
    """
    a, _ = fit_scale(values, weights, integers(low, high), end, -1.1, 1.2, 0.1)
    d = a.half().float()
    return d, (values * inverse(d)[:, None]).round().clamp(low, high)


def _grid(start: float, stop: float, step: float) -> list[float]:
    return [start + step * i for i in range(int((stop - start) / step + 1.5))]
