"""Native draws and penalties against their definition, in float64 with everything sorted."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tramontane.kernels import reference
from tramontane.sampling import SamplingParams
from tramontane_kernels_cpu.draw import draw, penalize
from tramontane_kernels_cpu.library import native, why_not

pytestmark = pytest.mark.skipif(native() is None, reason=str(why_not()))

LAST = 1 - 2**-53
"""The largest uniform number."""

filters = st.builds(
    SamplingParams,
    temperature=st.floats(0.1, 30.0),
    top_k=st.one_of(st.none(), st.integers(1, 3000)),
    top_p=st.one_of(st.none(), st.floats(0.01, 1.0)),
    min_p=st.one_of(st.none(), st.floats(0.0, 0.9)),
)


def logits_of(rows: int, vocab: int, seed: int, scale: float = 2.0) -> torch.Tensor:
    """A few likely tokens and many others, as models give them."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(rows, vocab, generator=generator)
    some = torch.randint(vocab, (rows, min(vocab, 20)), generator=generator)
    return logits.scatter_add_(1, some, 8 * torch.rand(some.shape, generator=generator))


def interval(row: torch.Tensor, params: Any, token: int) -> tuple[float, float]:
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
    end = sums[places[0]]
    return end - weights[token] / weights[order].sum(), end


@settings(max_examples=150, deadline=None)
@given(
    params=filters,
    vocab=st.one_of(st.integers(1, 80), st.sampled_from([2047, 2048, 2049, 7001])),
    uniforms=st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=3),
    seed=st.integers(0, 2**20),
)
def test_a_uniform_number_draws_what_the_definition_says(
    params: Any, vocab: int, uniforms: list[float], seed: int
) -> None:
    uniforms += [0.0, LAST]
    logits = logits_of(len(uniforms), vocab, seed)
    tokens = draw(logits, [params] * len(uniforms), uniforms)
    for row, token, uniform in zip(logits, tokens, uniforms, strict=True):
        begin, end = interval(row, params, token)
        assert begin - 1e-5 <= uniform <= end + 1e-5


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0, 30.0])
@pytest.mark.parametrize(
    "options",
    [{}, {"top_k": 40}, {"top_k": 60_000}, {"top_p": 0.5}, {"top_p": 0.999}, {"min_p": 1e-3}],
)
def test_large_vocabularies(temperature: float, options: Any) -> None:
    """From a few tokens that stay to nearly all of them."""
    params = SamplingParams(temperature=temperature, **options)
    uniforms = [0.0, 0.2, 0.5, 0.9, 0.9999, LAST]
    logits = logits_of(1, 152_064, 1).expand(len(uniforms), -1)
    for token, uniform in zip(draw(logits, [params] * 6, uniforms), uniforms, strict=True):
        begin, end = interval(logits[0], params, token)
        assert begin - 1e-4 <= uniform <= end + 1e-4  # rounding puts neighbours the other way round


@pytest.fixture(params=[1, 2, 3])
def num_threads(request: Any) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_company_and_threads_change_nothing(num_threads: int) -> None:
    rows = 19  # more than are held at once
    logits = logits_of(rows, 5003, 2)
    kinds = [{}, {"top_k": 7}, {"top_p": 0.9}, {"min_p": 0.1}, {"top_k": 900, "top_p": 0.99}]
    params: list[Any] = [
        SamplingParams(temperature=0.5 + 0.1 * row, **kinds[row % 5])  # type: ignore[arg-type]
        for row in range(rows)
    ]
    uniforms = torch.rand(rows, generator=torch.Generator().manual_seed(3)).tolist()
    together = draw(logits, params, uniforms)
    assert together == [
        draw(logits[row : row + 1], params[row : row + 1], uniforms[row : row + 1])[0]
        for row in range(rows)
    ]
    assert together == reference.draw(logits, params, uniforms)


@pytest.mark.parametrize("columns", [10, 300, 6000])
def test_of_equal_tokens_the_first_stay(columns: int) -> None:
    logits = torch.full((1, columns), 0.25).expand(3, -1)
    uniforms = [0.0, 0.5, LAST]
    third = [SamplingParams(temperature=1.0, top_k=3)] * 3
    assert draw(logits, third, uniforms) == [0, 1, 2]
    half = [SamplingParams(temperature=1.0, top_p=0.5)] * 3
    assert draw(logits, half, uniforms) == [0, columns // 4, columns // 2 - 1]
    everything = [SamplingParams(temperature=1.0)] * 3
    assert draw(logits, everything, uniforms) == [0, columns // 2, columns - 1]


@pytest.mark.parametrize("uniform", [0.0, 0.5, LAST])
@pytest.mark.parametrize(
    "options", [{}, {"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.5}, {"min_p": 1 - 1e-12}]
)
@pytest.mark.parametrize("temperature", [1e-6, 1.0, 1e30, 1e300])
def test_forbidden_tokens_are_never_drawn(uniform: float, options: Any, temperature: float) -> None:
    logits = torch.full((1, 4100), -math.inf)
    logits[0, [7, 2100, 4099]] = torch.tensor([1e4, 1e4 - 3, -1e4])
    params: Any = SamplingParams(temperature=temperature, **options)
    (token,) = draw(logits, [params], [uniform])
    assert token in (7, 2100, 4099)
    if temperature < 1:
        assert token == 7
    if temperature < 1e30:  # else all three weigh the same
        assert reference.draw(logits, [params], [uniform]) == [token]


def test_rows_of_a_wider_tensor() -> None:
    wide = logits_of(4, 300, 5)
    params: list[Any] = [SamplingParams(temperature=1.0, top_k=5)] * 4
    uniforms = [0.1, 0.4, 0.6, 0.8]
    assert draw(wide[:, 30:130], params, uniforms) == draw(
        wide[:, 30:130].clone(), params, uniforms
    )
    assert draw(wide.T.contiguous().T, params, uniforms) == draw(wide, params, uniforms)


@settings(max_examples=60, deadline=None)
@given(
    context=st.lists(st.integers(0, 13), max_size=30),
    presence=st.floats(-2, 2),
    frequency=st.floats(-2, 2),
    repetition=st.floats(0.5, 2),
    seed=st.integers(0, 2**20),
)
def test_penalties_are_those_of_the_reference(
    context: list[int], presence: float, frequency: float, repetition: float, seed: int
) -> None:
    """Tokens 10 and up lie outside of the vocabulary."""
    want, got = (logits_of(1, 10, seed)[0] for _ in range(2))
    want[3] = got[3] = -math.inf
    ids, counts = torch.tensor(context, dtype=torch.int64).unique(return_counts=True)
    options = {"presence": presence, "frequency": frequency, "repetition": repetition}
    reference.penalize(want, ids, counts.float(), **options)
    penalize(got, ids, counts.float(), **options)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
