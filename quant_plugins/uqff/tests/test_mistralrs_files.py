"""Directories that mistral.rs 0.6 and 0.9 wrote: loaded, they say what it said."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tramontane import Runner, Which
from tramontane_testkit.data import data_path

NEAR = 0.12
"""How far apart, in nats, two words may be for mistral.rs's rounding of activations to 8 bits to
choose the other one."""

# mistral.rs puts the BOS token also before a text that begins with it.
STORY = "<|start_story|><|start_story|>Once upon a time, "
PARK = "One day Tom and his sister Anna went to the big park near the river."


def follow(runner: Runner, prompt: str, expected: str) -> list[float]:
    """Walk along ``expected``; how much likelier the model's own word was wherever it differs."""
    text, gaps = "", []
    while len(text) < len(expected) - 1:
        options = {"temperature": 0.0, "logprobs": True, "top_logprobs": 8, "max_tokens": 40}
        answer = runner.send_completion_request({"prompt": prompt + text, **options})
        for token in answer.choices[0].logprobs.content:
            rest = expected[len(text) :]
            if not rest:
                break
            if rest.startswith(token.token) or token.token.startswith(rest):
                text += token.token
                continue
            others = [t for t in token.top_logprobs if rest.startswith(t.token)]
            assert others, f"{token.token!r} where {rest[:20]!r} was expected"
            best = max(others, key=lambda t: t.logprob)
            gaps.append(token.logprob - best.logprob)
            text += best.token
            break
    return gaps


@pytest.mark.parametrize("generation", ["gen0", "gen1"])
@pytest.mark.parametrize("kind", ["Q4K", "Q8_0", "AFQ8", "HQQ8"])
def test_the_words_are_those_of_mistralrs(generation: str, kind: str) -> None:
    directory = data_path("uqff", generation, kind)
    expected: dict[str, Any] = json.loads((directory / "expected.json").read_text())
    # Shorthand, which the report or the name of the file explains.
    # Which near ties fall how changes with every last digit, so nothing else is rounded.
    with Runner(Which.Plain(str(directory), from_uqff=kind), pa_cache_type="F32") as runner:
        gaps = follow(runner, PARK if kind == "Q4K" else STORY, expected["text"])
    if kind in ("AFQ8", "HQQ8"):  # there mistral.rs does not round activations
        assert not gaps
    assert len(gaps) <= 3
    assert all(gap < NEAR for gap in gaps)


def test_a_number_of_bits_finds_the_type_that_is_there() -> None:
    directory = data_path("uqff", "gen1", "AFQ8")
    with Runner(Which.Plain(str(directory), from_uqff="8")) as runner:
        assert runner.tokenize_text("Once")
