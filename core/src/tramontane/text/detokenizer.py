"""Text of generated tokens as they come."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tramontane.text.tokenizer import Tokenizer


class Detokenizer:
    """Turns tokens into text one at a time, in constant time a token.

    What `push` and `flush` return together equals what `Tokenizer.decode` makes of the prompt and
    the output, less what it makes of the prompt. An empty prompt thus gives ``decode(output)``
    itself, whose leading space a SentencePiece tokenizer drops; after a prompt the space is kept,
    since it belongs there. A character that the prompt leaves unfinished appears whole.

    Args:
        tokenizer: of the model that generates.
        prompt_ids: tokens that the output follows.
        skip_special_tokens: whether special tokens give no text, in the prompt and the output.
        shown: special tokens that give text nevertheless.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int] = (),
        *,
        skip_special_tokens: bool = True,
        shown: Container[int] = (),
    ) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._shown = shown
        self._stream = tokenizer.text_stream()
        pieces = (self._piece(token_id) for token_id in prompt_ids)
        self._stream.prime([piece for piece in pieces if piece is not None])

    def push(self, token_id: int) -> str:
        """Take one token.

        Returns:
            New text in whole characters; empty while the token's text may still change.
        """
        piece = self._piece(token_id)
        return "" if piece is None else self._stream.push(piece)

    def flush(self) -> str:
        """The text held back, once no more tokens will come."""
        return self._stream.flush()

    def _piece(self, token_id: int) -> str | None:
        skip = self._skip and token_id not in self._shown
        return self._tokenizer.piece(token_id, skip_special_tokens=skip)
