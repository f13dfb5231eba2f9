"""What an engine refuses."""

from __future__ import annotations

import pytest

from tramontane.errors import ValidationError


@pytest.mark.parametrize(
    ("prompt", "options", "match"),
    [
        ([], {}, "empty"),
        ([1] * 200, {}, "context ends at 200"),
        ([1] * 100, {"num_blocks": 20}, "cache holds 80"),
        ([1, 999], {"vocab_size": 31}, "token id 999"),
        ([1, -1], {"vocab_size": 31}, "-1"),
    ],
)
def test_what_can_never_run_is_refused(toy, engines, prompt, options, match):
    options = dict(options)
    executor = toy.Executor(options.pop("num_blocks", 64))
    engines.append(engine := toy.engine(executor, **options))
    good = toy.seq(engine, "abc")
    with pytest.raises(ValidationError, match=match):
        engine.submit([good, toy.seq(engine, prompt)])
    assert engine.stats()["waiting"] == 0
    engine.submit([good])  # all or none: it was not queued
    toy.read(good)
    with pytest.raises(ValidationError, match="submitted before"):
        engine.submit([good])


def test_bad_limits_are_refused(toy):
    with pytest.raises(ValidationError, match="max_seqs"):
        toy.engine(max_seqs=0)
    with pytest.raises(ValidationError, match="max_step_tokens"):
        toy.engine(max_seqs=8, max_step_tokens=8)
