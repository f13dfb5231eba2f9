"""Models and files that the tests of this distribution share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tramontane import Runner, Which
from tramontane_testkit.models import tiny_llama

WIDE = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 4}
"""Multiples of every block."""

NARROW = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4}
"""Multiples of all blocks but those of k-quants."""


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("uqff") / "wide", **WIDE)


@pytest.fixture(scope="session")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("uqff") / "narrow", **NARROW)


@pytest.fixture
def continued() -> Callable[..., str]:
    """``continued(directory, in_situ_quant=None, **which)``: what a model says greedily."""

    def ask(directory: Path, in_situ_quant: str | None = None, **which: Any) -> str:
        selector = Which.Plain(str(directory), dtype="F32", **which)
        with Runner(selector, in_situ_quant=in_situ_quant) as runner:
            request = {"prompt": "ab", "max_tokens": 12, "temperature": 0.0, "ignore_eos": True}
            text: str = runner.send_completion_request(request).choices[0].text
            return text

    return ask
