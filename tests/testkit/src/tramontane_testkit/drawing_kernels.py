"""The shared contract of ``draw`` and ``penalize``: against their definitions, in float64 with
everything sorted."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from tramontane.sampling import SamplingParams

LAST = 1 - 2**-53
"""The largest uniform number."""


def logits_of(rows: int, vocab: int, seed: int) -> Tensor:
    """A few likely tokens and many others, as models give them: [rows, vocab]."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(rows, vocab, generator=generator)
    some = torch.randint(vocab, (rows, min(vocab, 20)), generator=generator)
    return logits.scatter_add_(1, some, 8 * torch.rand(some.shape, generator=generator))


def interval(row: Tensor, params: Any, token: int) -> tuple[float, float]:
    """Between which uniform numbers ``token`` is drawn; fails where it never is."""
    weights = np.exp((row.double().numpy() - float(row.max())) / params.temperature)
    weights /= weights.sum()
    order = np.arange(len(row))
    top_k, top_p = params.top_k or len(row), 2 if params.top_p in (None, 1) else params.top_p
    if top_k < len(row) or top_p < 1:
        order = np.argsort(-weights, kind="stable")[:top_k]
        order = order[np.cumsum(weights[order]) - weights[order] < top_p + 1e-6]
    order = order[weights[order] > (params.min_p or 0) * weights.max() * (1 - 1e-6)]
    sums = np.cumsum(weights[order]) / weights[order].sum()
    (places,) = np.nonzero(order == token)
    assert len(places) == 1, f"token {token} does not stay"
    end = float(sums[places[0]])
    return end - weights[token] / weights[order].sum(), end


def random_params(rng: random.Random) -> Any:
    return SamplingParams(
        temperature=rng.choice([0.1, 0.7, 1.0, 5.0, 30.0]),
        top_k=rng.choice([None, None, 1, 2, 40, 3000]),
        top_p=rng.choice([None, None, 0.01, 0.5, 0.9, 0.999, 1.0]),
        min_p=rng.choice([None, None, 0.0, 1e-3, 0.1, 0.9]),
    )


class DrawContract:
    """Subclass, name it ``Test…`` and fill in the attributes.

    Attributes:
        kernel: an implementation of ``draw``.
        device: where the logits lie.
    """

    kernel: ClassVar[Callable[..., list[int]]]
    device: ClassVar[str] = "cpu"

    def draw(self, logits: Tensor, params: list[Any], uniforms: list[float]) -> list[int]:
        return type(self).kernel(logits.to(self.device), params, uniforms)

    @pytest.mark.parametrize("vocab", [1, 2, 7, 50, 257, 2047, 2048, 2049, 7001])
    def test_a_uniform_number_draws_what_the_definition_says(self, vocab: int) -> None:
        rng = random.Random(vocab)
        for seed in range(40):
            uniforms = [0.0, rng.random(), rng.random(), rng.random(), LAST]
            params = [random_params(rng) for _ in uniforms]
            logits = logits_of(len(uniforms), vocab, seed)
            tokens = self.draw(logits, params, uniforms)
            for row, p, token, uniform in zip(logits, params, tokens, uniforms, strict=True):
                begin, end = interval(row, p, token)
                assert begin - 1e-5 <= uniform <= end + 1e-5, p

    @pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0, 30.0])
    @pytest.mark.parametrize(
        "options",
        [{}, {"top_k": 40}, {"top_k": 60_000}, {"top_p": 0.5}, {"top_p": 0.999}, {"min_p": 1e-3}],
        ids=str,
    )
    def test_large_vocabularies(self, temperature: float, options: Any) -> None:
        """From a few tokens that stay to nearly all of them."""
        params = SamplingParams(temperature=temperature, **options)
        uniforms = [0.0, 0.5, 0.9999, LAST]
        logits = logits_of(1, 152_064, 1).expand(len(uniforms), -1)
        tokens = self.draw(logits, [params] * len(uniforms), uniforms)
        for token, uniform in zip(tokens, uniforms, strict=True):
            begin, end = interval(logits[0], params, token)
            # Rounding puts some neighbours the other way round.
            assert begin - 1e-4 <= uniform <= end + 1e-4

    def test_company_changes_nothing(self) -> None:
        rng = random.Random(0)
        logits = logits_of(19, 5003, 2)
        params = [random_params(rng) for _ in logits]
        uniforms = [rng.random() for _ in logits]
        alone = [
            self.draw(logits[i : i + 1], params[i : i + 1], uniforms[i : i + 1])[0]
            for i in range(len(logits))
        ]
        assert self.draw(logits, params, uniforms) == alone

    @pytest.mark.parametrize("temperature", [1e-6, 1.0, 1e30, 1e300])
    @pytest.mark.parametrize(
        "options",
        [{}, {"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.5}, {"min_p": 1 - 1e-12}],
        ids=str,
    )
    def test_forbidden_tokens_are_never_drawn(self, options: Any, temperature: float) -> None:
        logits = torch.full((3, 4100), -math.inf)
        logits[:, [7, 2100, 4099]] = torch.tensor([1e4, 1e4 - 3, -1e4])
        params = SamplingParams(temperature=temperature, **options)
        tokens = self.draw(logits, [params] * 3, [0.0, 0.5, LAST])
        allowed = {7} if temperature < 1 else {7, 2100} if temperature == 1 else {7, 2100, 4099}
        assert set(tokens) <= allowed


class PenalizeContract:
    """Subclass, name it ``Test…`` and fill in the attributes.

    Attributes:
        kernel: an implementation of ``penalize``.
        device: where the logits lie.
    """

    kernel: ClassVar[Callable[..., None]]
    device: ClassVar[str] = "cpu"

    @pytest.mark.parametrize("vocab", [1, 10, 5000])
    def test_logits_of_what_occurs_are_lowered(self, vocab: int) -> None:
        rng = random.Random(vocab)
        for seed in range(60):
            # The last ones lie outside of the vocabulary.
            context = [rng.randrange(vocab + 4) for _ in range(rng.randrange(50))]
            presence, frequency = rng.choice([0.0, -1.5, 0.7]), rng.choice([0.0, -0.3, 2.0])
            repetition = rng.choice([1.0, 0.5, 1.3])
            logits = logits_of(1, vocab, seed)[0]
            logits[rng.randrange(vocab)] = -math.inf
            want = logits.double()
            counts = Counter(context)
            for token, count in counts.items():
                if token < vocab:
                    value = want[token] - count * frequency - presence
                    want[token] = value / repetition if value > 0 else value * repetition
            got = logits.to(self.device)
            type(self).kernel(
                got,
                torch.tensor(list(counts), dtype=torch.int64),
                torch.tensor(list(counts.values()), dtype=torch.float32),
                presence=presence,
                frequency=frequency,
                repetition=repetition,
            )
            torch.testing.assert_close(got.cpu().double(), want, rtol=1e-5, atol=1e-5)
