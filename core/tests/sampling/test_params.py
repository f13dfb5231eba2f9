from __future__ import annotations

import math
from typing import Any

import pytest

from tramontane.api import ChatCompletionRequest, CompletionRequest
from tramontane.errors import ConfigError, ValidationError
from tramontane.sampling import DryParams, SamplingParams


def encode(text: str, add_special_tokens: bool = True) -> list[int]:
    return [ord(letter) for letter in text]


def resolve(config: dict[str, Any] | None = None, **fields: Any) -> SamplingParams:
    request = ChatCompletionRequest("hi", **fields)
    return SamplingParams.resolve(request, config, encode=encode)


SAMPLING = {
    "do_sample": True,
    "temperature": 0.6,
    "top_k": 20,
    "top_p": 0.95,
    "min_p": 0.05,
    "repetition_penalty": 1.1,
    "max_new_tokens": 99,
    "eos_token_id": [1, 2],
}


def test_without_anything_the_most_likely_token_is_taken() -> None:
    params = resolve()
    assert params == SamplingParams()
    assert params.is_greedy


def test_the_model_fills_what_the_request_leaves_out() -> None:
    params = resolve(SAMPLING)
    assert (params.temperature, params.top_k, params.top_p, params.min_p) == (0.6, 20, 0.95, 0.05)
    assert (params.repetition_penalty, params.max_tokens) == (1.1, 99)


def test_the_request_wins() -> None:
    params = resolve(SAMPLING, temperature=0, top_k=-1, top_p=1.0, max_tokens=5, min_p=0.0)
    assert params.is_greedy
    assert (params.top_k, params.top_p, params.min_p, params.max_tokens) == (None, 1.0, 0.0, 5)


def test_do_sample_false_is_greedy_unless_the_request_has_a_temperature() -> None:
    config = SAMPLING | {"do_sample": False}
    assert resolve(config).is_greedy
    assert resolve(config).repetition_penalty == 1.1
    params = resolve(config, temperature=0.9)
    assert (params.temperature, params.top_k, params.top_p) == (0.9, None, None)


def test_do_sample_without_temperature_is_one() -> None:
    assert resolve({"do_sample": True}).temperature == 1.0
    assert resolve({"temperature": 0.4}).temperature == 0.4


def test_neutral_values_of_the_model_are_off() -> None:
    params = resolve({"do_sample": True, "top_k": 0, "top_p": 1.0, "min_p": None})
    assert (params.top_k, params.top_p, params.min_p) == (None, 1.0, None)


def test_suppressed_tokens_can_be_allowed_by_the_request() -> None:
    config = {"suppress_tokens": [4, 5]}
    assert resolve(config).logit_bias == {4: -math.inf, 5: -math.inf}
    assert resolve(config, logit_bias={"5": 1}).logit_bias == {4: -math.inf, 5: 1.0}


def test_a_wrong_value_of_the_model_names_the_file() -> None:
    with pytest.raises(ConfigError, match=r"generation_config\.json: temperature must be"):
        resolve({"do_sample": True, "temperature": -1})


def test_dry_needs_a_multiplier() -> None:
    assert resolve(dry_base=2.0).dry is None
    assert resolve(dry_multiplier=0).dry is None
    assert resolve(dry_multiplier=0.8).dry == DryParams(
        multiplier=0.8, base=1.75, allowed_length=2, breaker_ids=frozenset(map(ord, '\n:"*'))
    )
    params = resolve(
        dry_multiplier=0.8, dry_base=2, dry_allowed_length=0, dry_sequence_breakers=["xy"]
    )
    assert params.dry == DryParams(
        multiplier=0.8, base=2, allowed_length=0, breaker_ids=frozenset({ord("y")})
    )


def test_logprobs() -> None:
    assert not resolve().logprobs
    assert resolve(logprobs=True).top_logprobs == 1
    assert resolve(logprobs=True, top_logprobs=0).top_logprobs == 0
    request = CompletionRequest("x", stop_seqs="\n", seed=3)
    params = SamplingParams.resolve(request, None, encode=encode, need_logprobs=True)
    assert (params.logprobs, params.top_logprobs) == (True, 0)
    assert (params.stop_strings, params.seed) == (("\n",), 3)


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_k": 0},
        {"top_k": -2},
        {"top_k": 1.5},
        {"top_p": 0},
        {"top_p": 1.01},
        {"min_p": 1},
        {"min_p": -0.1},
        {"repetition_penalty": 0},
        {"presence_penalty": math.nan},
        {"frequency_penalty": None},
        {"logit_bias": {-1: 1.0}},
        {"logit_bias": {1: math.inf}},
        {"logit_bias": {1: math.nan}},
        {"max_tokens": 0},
        {"seed": 1.5},
    ],
)
def test_bad_values_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(fields))):
        SamplingParams(**fields)
