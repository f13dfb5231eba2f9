"""When a turn ends, and what the model's authors recommend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import models

from tramontane.errors import ConfigError, SourceError
from tramontane.text.generation_config import (
    end_of_turn_ids,
    eos_ids,
    read_generation_config,
    sampling_defaults,
)
from tramontane.text.tokenizer import Tokenizer


def test_reading(tmp_path: Path) -> None:
    assert read_generation_config(tmp_path) == {}
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    assert read_generation_config(tmp_path) == {"eos_token_id": [1, 2]}
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(SourceError, match=r"generation_config\.json is not valid JSON"):
        read_generation_config(tmp_path)


@pytest.mark.parametrize(
    ("value", "expected"), [(None, set()), (2, {2}), ([2, 3], {2, 3}), ([], set())]
)
def test_eos_forms(value: Any, expected: set[int]) -> None:
    assert eos_ids({"eos_token_id": value}) == expected


@pytest.mark.parametrize("value", ["</s>", -1, [1, None], True, 1.5])
def test_bad_eos(value: Any) -> None:
    with pytest.raises(ConfigError, match="eos_token_id"):
        eos_ids({"eos_token_id": value})


def test_every_end_of_turn() -> None:
    vocab = {"<unk>": 0, "</s>": 1, "<|im_end|>": 2, "a": 3, "<end_of_turn>": 4}
    backend = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer = Tokenizer(backend, eos_token="</s>")
    assert end_of_turn_ids(tokenizer, {"eos_token_id": 7}, 9) == {1, 2, 4, 7, 9}


def test_sampling() -> None:
    config = {"temperature": 0.6, "top_k": 20, "top_p": None, "max_length": 9}
    assert sampling_defaults(config) == {"temperature": 0.6, "top_k": 20}
    assert sampling_defaults({**config, "do_sample": False}) == {}
    with pytest.raises(ConfigError, match="top_p"):
        sampling_defaults({"top_p": "high"})
