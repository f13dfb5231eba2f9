from __future__ import annotations

import importlib.util
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tramontane.errors import EngineError
from tramontane.kernels.draw import draw
from tramontane.kernels.selection import BLOCK, largest
from tramontane.sampling import DryParams, Sampler, SamplerState, SamplingParams

_spec = importlib.util.spec_from_file_location(
    "sampling_reference", Path(__file__).with_name("reference.py")
)
assert _spec is not None
assert _spec.loader is not None
reference = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(reference)

SAMPLER = Sampler()


def distinct_logits(rows: int, vocab: int, seed: int, scale: float = 3.0) -> torch.Tensor:
    """Random logits without ties."""
    rng = np.random.default_rng(seed)
    steps = np.stack([rng.permutation(vocab) for _ in range(rows)]) / vocab
    return torch.tensor(scale * (2 * steps - 1) + rng.normal(0, 1e-4, (rows, vocab))).float()


def inverse_cdf(row: torch.Tensor, params: SamplingParams, grid: int = 501) -> dict[int, float]:
    """The distribution that `draw` realizes: what it returns for an even grid of numbers."""
    uniforms = [(i + 0.5) / grid for i in range(grid)]
    tokens = draw(row.expand(grid, -1), [params] * grid, uniforms)
    return {token: count / grid for token, count in Counter(tokens).items()}


@pytest.mark.parametrize("size", [4 * BLOCK * 7, 4 * BLOCK * 7 + 5, 33 * BLOCK - 1])
@pytest.mark.parametrize("count", [0, 1, 7])
def test_the_largest_are_those_of_topk(size: int, count: int) -> None:
    rng = np.random.default_rng(size)
    values = torch.tensor(np.stack([rng.permutation(size) for _ in range(3)])).float()
    values[0] = torch.arange(size)  # all in the last blocks and what follows them
    values[1] = values[0].flip(0)
    got, want = largest(values, count), torch.topk(values, count, dim=-1)
    assert torch.equal(got[0], want.values)
    assert torch.equal(got[1], want.indices)
    level = torch.full((2, size), -torch.inf)
    level[:, 5] = 1.0
    top, columns = largest(level, count)
    assert torch.equal(top, torch.topk(level, count).values)
    assert all(len(set(row)) == count for row in columns.tolist())


sampled_params = st.builds(
    SamplingParams,
    temperature=st.floats(0.2, 3.0),
    top_k=st.one_of(st.none(), st.integers(1, 40)),
    top_p=st.one_of(st.none(), st.floats(0.05, 1.0)),
    min_p=st.one_of(st.none(), st.floats(0.0, 0.9)),
)


@settings(max_examples=60, deadline=None)
@given(params=sampled_params, vocab=st.integers(1, 50), seed=st.integers(0, 2**20))
def test_filters_as_the_reference_does(params: Any, vocab: int, seed: int) -> None:
    row = distinct_logits(1, vocab, seed)[0]
    expected = reference.distribution(row.tolist(), params)
    grid = 501
    found = inverse_cdf(row, params, grid)
    for token in expected.keys() | found.keys():
        assert found.get(token, 0) == pytest.approx(expected.get(token, 0), abs=2 / grid)
    assume(len(expected) < vocab)
    assert set(found) <= set(expected)


@settings(max_examples=60, deadline=None)
@given(
    context=st.lists(st.integers(0, 11), min_size=1, max_size=40),
    presence=st.floats(-2, 2),
    frequency=st.floats(-2, 2),
    repetition=st.floats(0.5, 2),
    dry=st.one_of(
        st.none(),
        st.builds(
            DryParams,
            multiplier=st.floats(0.1, 3),
            base=st.floats(1, 2),
            allowed_length=st.integers(0, 4),
            breaker_ids=st.frozensets(st.integers(0, 11), max_size=3),
        ),
    ),
    bias=st.dictionaries(st.integers(0, 9), st.floats(-5, 5), max_size=4),
    split=st.integers(0, 40),
    seed=st.integers(0, 2**20),
)
def test_penalties_match_the_reference(
    context: list[int],
    presence: float,
    frequency: float,
    repetition: float,
    dry: DryParams | None,
    bias: dict[int, float],
    split: int,
    seed: int,
) -> None:
    """Tokens 10 and 11 lie outside of the vocabulary, as placeholders of images do."""
    params = SamplingParams(
        presence_penalty=presence,
        frequency_penalty=frequency,
        repetition_penalty=repetition,
        dry=dry,
        logit_bias=bias,
    )
    logits = distinct_logits(1, 10, seed)[0]
    expected = torch.tensor(reference.penalized(logits, context, params))
    state = SamplerState(params, context[:split])
    for token in [None, *context[split:]]:
        if token is not None:
            state.output_ids.append(token)
        row = logits.clone()
        state.apply(row)
    torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            st.one_of(sampled_params, st.just(SamplingParams(logprobs=True, top_logprobs=3))),
            st.lists(st.integers(0, 299), max_size=20),
        ),
        min_size=2,
        max_size=6,
    ),
    seed=st.integers(0, 2**20),
)
def test_a_row_is_the_same_alone_and_in_company(rows: list[Any], seed: int) -> None:
    logits = distinct_logits(len(rows), 300, seed, scale=8)

    def states() -> list[SamplerState]:
        return [SamplerState(p, context, seed=7 + i) for i, (p, context) in enumerate(rows)]

    together, alone = states(), states()
    for _ in range(3):
        batch = SAMPLER.sample(logits, together)
        single = [SAMPLER.sample(logits[i : i + 1], [state])[0] for i, state in enumerate(alone)]
        assert batch == single
        for a, b, token in zip(together, alone, batch, strict=True):
            a.output_ids.append(token.token_id)
            b.output_ids.append(token.token_id)


def test_greedy_batch_is_one_argmax() -> None:
    logits = distinct_logits(5, 1000, 1)
    states = [SamplerState(SamplingParams(), [1, 2]) for _ in range(5)]
    tokens = [token.token_id for token in SAMPLER.sample(logits, states)]
    assert tokens == logits.argmax(-1).tolist()


@pytest.mark.parametrize("temperature", [None, 0, 0.0, 9e-8])
def test_no_temperature_is_greedy(temperature: float | None) -> None:
    params = SamplingParams(temperature=temperature, top_k=50, top_p=0.9)
    logits = distinct_logits(1, 100, 2)
    for _ in range(20):
        (token,) = SAMPLER.sample(logits, [SamplerState(params, [])])
        assert token.token_id == int(logits.argmax())


def test_logits_are_not_changed() -> None:
    logits = distinct_logits(1, 20, 3)
    before = logits.clone()
    params = SamplingParams(presence_penalty=1.0, logit_bias={3: 5.0}, temperature=0.7)
    SAMPLER.sample(logits, [SamplerState(params, [1, 2, 3])])
    assert torch.equal(logits, before)


def test_columns_that_lie_side_by_side() -> None:
    """Logits as a transposed product gives them."""
    logits = distinct_logits(4, 200, 13)
    transposed = logits.T.contiguous().T
    params = SamplingParams(presence_penalty=1.0, repetition_penalty=1.2, temperature=0.7)
    found, expected = (
        SAMPLER.sample(rows, [SamplerState(params, [1, 2, 3], seed=seed) for seed in range(4)])
        for rows in (transposed, logits)
    )
    assert found == expected


def test_draws_follow_the_distribution() -> None:
    """Chi-squared over 4,000 draws of one seeded sequence; 15 degrees of freedom."""
    row = distinct_logits(1, 16, 4, scale=1.5)
    params = SamplingParams(temperature=0.9, seed=11)
    state = SamplerState(params, [])
    draws = Counter(SAMPLER.sample(row, [state])[0].token_id for _ in range(4000))
    expected = reference.distribution(row[0].tolist(), params)
    chi2 = sum((draws[t] - 4000 * p) ** 2 / (4000 * p) for t, p in expected.items())
    assert set(draws) == set(expected)
    assert chi2 < 37.7  # the 0.1 % point


def test_seed_repeats_and_seeds_differ() -> None:
    logits = distinct_logits(1, 500, 5, scale=1)

    def run(seed: int | None, override: int | None = None) -> list[int]:
        state = SamplerState(SamplingParams(temperature=1.0, seed=seed), [], seed=override)
        return [SAMPLER.sample(logits, [state])[0].token_id for _ in range(12)]

    assert run(1) == run(1) == run(99, override=1)
    assert run(1) != run(2)
    assert run(None) != run(None)


def test_nucleus_grows_until_it_holds_top_p() -> None:
    """Flat distributions need far more tokens than are selected at first."""
    logits = torch.linspace(0, 0.1, 3000)[torch.randperm(3000)]
    for top_p, least in ((0.2, 500), (0.9, 2500)):  # one growth, two growths
        params = SamplingParams(temperature=1.0, top_p=top_p)
        kept = reference.distribution(logits.tolist(), params)
        assert len(kept) > least
        uniforms = [0.0, 0.3, 0.7, 1 - 1e-12]
        drawn = draw(logits.expand(4, -1), [params] * 4, uniforms)
        falling = sorted(kept, key=lambda token: -logits[token])
        sums = np.cumsum([kept[token] for token in falling])
        for token, uniform in zip(drawn, uniforms, strict=True):
            place = falling.index(token)
            assert sums[place] >= uniform - 1e-6
            assert sums[place] - kept[token] <= uniform + 1e-6


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
@pytest.mark.parametrize("settings_", [{}, {"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.5}])
def test_ends_of_the_unit_interval_draw_a_kept_token(uniform: float, settings_: Any) -> None:
    logits = torch.tensor([[-math.inf, 0.0, 5.0, -math.inf, 4.9, -math.inf]])
    params = SamplingParams(temperature=1.0, **settings_)
    (token,) = draw(logits, [params], [uniform])
    assert token in reference.distribution(logits[0].tolist(), params)


def test_tiny_and_huge_temperatures() -> None:
    logits = torch.tensor([[1e4, 9.9e3, -1e4]])
    assert draw(logits, [SamplingParams(temperature=1e-6)], [0.999]) == [0]
    tokens = draw(logits.expand(3, -1), [SamplingParams(temperature=1e30)] * 3, [0.1, 0.5, 0.9])
    assert tokens == [0, 1, 2]


def test_logprobs_are_natural_and_of_the_penalized_distribution() -> None:
    logits = distinct_logits(1, 30, 6)
    params = SamplingParams(
        temperature=0.3,
        top_k=1,
        presence_penalty=1.5,
        logit_bias={4: 3.0},
        logprobs=True,
        top_logprobs=5,
    )
    (token,) = SAMPLER.sample(logits, [SamplerState(params, [2, 2, 7])])
    row = np.array(reference.penalized(logits[0], [2, 2, 7], params))
    expected = row - np.log(np.exp(row).sum())
    top = np.argsort(-expected)[:5]
    assert token.token_id == top[0]
    assert token.logprob == pytest.approx(expected[top[0]], abs=1e-5)
    assert [t for t, _ in token.top_logprobs] == top.tolist()
    assert [p for _, p in token.top_logprobs] == pytest.approx(expected[top], abs=1e-5)


def test_logprobs_of_some_rows_only() -> None:
    logits = distinct_logits(3, 10, 7)
    wanted = [
        SamplingParams(),
        SamplingParams(logprobs=True),
        SamplingParams(logprobs=True, top_logprobs=20),
    ]
    tokens = SAMPLER.sample(logits, [SamplerState(p, []) for p in wanted])
    assert tokens[0].logprob is None
    assert tokens[1].logprob is not None
    assert tokens[1].top_logprobs == ()
    assert len(tokens[2].top_logprobs) == 10
    assert tokens[2].top_logprobs[0] == (tokens[2].token_id, tokens[2].logprob)


def test_mask_leaves_only_allowed_tokens() -> None:
    logits = distinct_logits(1, 12, 8)
    allowed = torch.zeros(10, dtype=torch.bool)
    allowed[[3, 5]] = True
    params = SamplingParams(temperature=1.0, logprobs=True, top_logprobs=4)
    state = SamplerState(params, [], seed=1, allowed_mask=lambda: allowed)
    found = {SAMPLER.sample(logits, [state])[0] for _ in range(60)}
    assert {token.token_id for token in found} == {3, 5}
    assert all({t for t, _ in token.top_logprobs} == {3, 5} for token in found)


@pytest.mark.parametrize(
    ("value", "message"), [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "leave no token")]
)
@pytest.mark.parametrize("temperature", [None, 1.0])
def test_unusable_logits_fail_before_anything_is_drawn(
    value: float, message: str, temperature: float | None
) -> None:
    logits = distinct_logits(2, 50, 9)
    logits[1] = value if value < 0 else logits[1]
    logits[1, 17] = value
    params = SamplingParams(temperature=temperature, seed=3)
    good, bad = SamplerState(params, []), SamplerState(params, [])
    with pytest.raises(EngineError, match=message):
        SAMPLER.sample(logits, [good, bad])
    fresh = SamplerState(params, [])
    assert SAMPLER.sample(logits[:1], [good]) == SAMPLER.sample(logits[:1], [fresh])


def test_grammar_that_allows_nothing_is_an_error() -> None:
    state = SamplerState(
        SamplingParams(), [], allowed_mask=lambda: torch.zeros(8, dtype=torch.bool)
    )
    with pytest.raises(EngineError, match="leave no token"):
        SAMPLER.sample(distinct_logits(1, 8, 1), [state])


def test_bias_outside_of_the_vocabulary_names_the_token() -> None:
    state = SamplerState(SamplingParams(logit_bias={80: 1.0}), [])
    with pytest.raises(EngineError, match=r"token 80; the model's vocabulary ends at 7"):
        SAMPLER.sample(distinct_logits(1, 8, 1), [state])


def test_bias_forbids_and_forces() -> None:
    logits = distinct_logits(2, 40, 10)
    best = int(logits[0].argmax())
    states = [
        SamplerState(SamplingParams(logit_bias={best: -math.inf}), []),
        SamplerState(SamplingParams(logit_bias={5: 100.0}, temperature=1.0), []),
    ]
    first, second = SAMPLER.sample(logits, states)
    assert first.token_id == int(logits[0].argsort(descending=True)[1])
    assert second.token_id == 5


# Against transformers, where the definitions coincide.


@pytest.mark.parametrize("penalty", [0.7, 1.3, 2.0])
def test_repetition_penalty_is_that_of_transformers(penalty: float) -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    logits, context = distinct_logits(1, 50, 11), [3, 9, 3, 44]
    theirs = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([context]), logits.clone())
    ours = logits[0].clone()
    SamplerState(SamplingParams(repetition_penalty=penalty), context).apply(ours)
    torch.testing.assert_close(ours, theirs[0])


@pytest.mark.parametrize("temperature", [0.5, 1.7])
@pytest.mark.parametrize(
    ("name", "value"),
    [("top_k", 1), ("top_k", 7), ("top_p", 0.3), ("top_p", 0.95), ("min_p", 0.05), ("min_p", 0.6)],
)
def test_warpers_are_those_of_transformers(name: str, value: float, temperature: float) -> None:
    from transformers import (
        MinPLogitsWarper,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    warper = {"top_k": TopKLogitsWarper, "top_p": TopPLogitsWarper, "min_p": MinPLogitsWarper}
    logits = distinct_logits(1, 300, 12, scale=5)
    ids = torch.zeros(1, 1, dtype=torch.int64)
    warped = warper[name](value)(ids, TemperatureLogitsWarper(temperature)(ids, logits.clone()))
    theirs = torch.softmax(warped, -1)[0]
    params = SamplingParams(temperature=temperature, **{name: value})  # type: ignore[arg-type]
    grid = 501
    ours = inverse_cdf(logits[0], params, grid)
    for token in range(300):
        assert ours.get(token, 0) == pytest.approx(float(theirs[token]), abs=2 / grid)
        if theirs[token] == 0:
            assert token not in ours


def test_masks_of_some_rows_leave_the_others_alone() -> None:
    """Rows with a mask shorter than the logits, without one, and with one that allows all."""
    logits = torch.randn(3, 10, generator=torch.Generator().manual_seed(0))
    only = torch.zeros(8, dtype=torch.bool)
    only[[2, 5]] = True
    masks = [lambda: only, None, lambda: None]
    states = [SamplerState(SamplingParams(), [], allowed_mask=mask) for mask in masks]
    before = logits.clone()
    tokens = [one.token_id for one in Sampler().sample(logits, states)]
    assert tokens[0] == (2 if logits[0, 2] > logits[0, 5] else 5)
    assert tokens[1:] == logits[1:].argmax(-1).tolist()
    assert torch.equal(logits, before)
