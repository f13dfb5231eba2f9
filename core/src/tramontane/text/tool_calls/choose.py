"""Which format a model's tool calls have: its chat template tells."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from tramontane.hooks.specs import ToolFormatSpec

if TYPE_CHECKING:
    from tramontane.text.tokenizer import Tokenizer


def choose_format(specs: Iterable[ToolFormatSpec], template: str) -> ToolFormatSpec | None:
    """The format whose markers the template mentions, all of them; of several the one with most
    text in its markers, since the more that is mentioned, the less it is by chance.

    Returns:
        None if the template mentions no format's markers. A format without markers serves for
        every template.
    """
    fitting = [spec for spec in specs if all(marker in template for marker in spec.markers)]
    return max(fitting, key=lambda spec: sum(map(len, spec.markers)), default=None)


def shown_tokens(spec: ToolFormatSpec | None, tokenizer: Tokenizer) -> frozenset[int]:
    """Special tokens that the format is written with, and that must not be left out of the text
    it is read from."""
    if spec is None:
        return frozenset()
    ids = (tokenizer.token_to_id(token) for token in spec.tokens)
    return frozenset(token_id for token_id in ids if token_id is not None)
