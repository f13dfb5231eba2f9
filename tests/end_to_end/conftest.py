"""A tiny random Llama for every test here: what it says is noise, but always the same noise."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tramontane import Runner, Which
from tramontane_testkit.models import tiny_llama


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def runner(model_dir: Path) -> Iterator[Runner]:
    with Runner(which=Which.Plain(model_id=str(model_dir)), seed=7) as runner:
        yield runner
