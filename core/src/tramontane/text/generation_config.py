"""``generation_config.json``: when a turn ends, and how the model's authors would sample."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tramontane.errors import ConfigError
from tramontane.text.json_files import read_json

if TYPE_CHECKING:
    from tramontane.text.tokenizer import Tokenizer

END_OF_TURN = (
    "<|im_end|>",
    "<end_of_turn>",
    "<|end_of_text|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|return|>",
    "<|call|>",
)
"""Tokens that end a turn in the common chat formats, whether or not a configuration lists them."""

_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def read_generation_config(directory: Path) -> dict[str, Any]:
    """Content of ``generation_config.json``; empty if the model has none.

    Raises:
        SourceError: the file is not a JSON object.
    """
    return read_json(directory / "generation_config.json") or {}


def eos_ids(config: Mapping[str, Any]) -> frozenset[int]:
    """``eos_token_id`` of a configuration, which may be absent, null, a number or a list.

    Raises:
        ConfigError: it is something else.
    """
    value = config.get("eos_token_id")
    values = value if isinstance(value, list | tuple) else [] if value is None else [value]
    for item in values:
        if not isinstance(item, int) or isinstance(item, bool) or item < 0:
            raise ConfigError(
                f"eos_token_id must be a token id or a list of token ids, not {value!r}"
            )
    return frozenset(values)


def end_of_turn_ids(
    tokenizer: Tokenizer, generation_config: Mapping[str, Any], *extra: int
) -> frozenset[int]:
    """Every token that ends the model's turn.

    They are the tokenizer's end of sequence, those of the generation configuration, ``extra``,
    and whichever tokens of `END_OF_TURN` the vocabulary has.
    """
    ids = set(eos_ids(generation_config)) | set(extra)
    if tokenizer.eos_token_id is not None:
        ids.add(tokenizer.eos_token_id)
    for text in END_OF_TURN:
        token_id = tokenizer.token_to_id(text)
        if token_id is not None:
            ids.add(token_id)
    return frozenset(ids)


def sampling_defaults(generation_config: Mapping[str, Any]) -> dict[str, int | float]:
    """The sampling values that the model's authors recommend.

    Empty when they turn sampling off (``do_sample: false``): values left beside it are unused
    there too.

    Raises:
        ConfigError: a value is not a number.
    """
    if generation_config.get("do_sample") is False:
        return {}
    defaults: dict[str, int | float] = {}
    for key in _SAMPLING:
        value = generation_config.get(key)
        if value is None:
            continue
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ConfigError(f"{key} of generation_config.json must be a number, not {value!r}")
        defaults[key] = value
    return defaults
