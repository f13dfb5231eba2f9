"""Text to token ids and back."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import tokenizers

from tramontane.errors import ValidationError
from tramontane.text.token_text import TextStream, TokenText, token_text_of


class Tokenizer:
    """A tokenizer of the tokenizers library, with the conventions of language models.

    Args:
        tokenizer: special tokens registered. Truncation and padding, which some files switch on,
            are switched off: a prompt is never cut unasked.
        bos_token, eos_token, unk_token: texts of the special tokens, where the model has them.
        add_bos, add_eos: whether encoding with special tokens puts ``bos_token`` before and
            ``eos_token`` after the text. If both are None, the tokenizer's own post-processor
            decides.
    """

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        *,
        bos_token: str | None = None,
        eos_token: str | None = None,
        unk_token: str | None = None,
        add_bos: bool | None = None,
        add_eos: bool | None = None,
    ) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self.bos_token = bos_token
        self.eos_token = eos_token
        self.unk_token = unk_token
        self.bos_token_id = self._id(bos_token)
        self.eos_token_id = self._id(eos_token)
        self.unk_token_id = self._id(unk_token)
        self.add_bos = add_bos
        self.add_eos = add_eos
        self._added = {
            token_id: (token.content, token.special)
            for token_id, token in tokenizer.get_added_tokens_decoder().items()
        }
        self._special = frozenset(i for i, (_, special) in self._added.items() if special)
        self._pieces: dict[int, str | None] = {}
        self._token_text: TokenText = token_text_of(tokenizer)

    @classmethod
    def from_files(
        cls, directory: str | Path, tokenizer_json: str | Path | None = None
    ) -> Tokenizer:
        """Read the tokenizer of a model directory.

        See `tramontane.text.tokenizer_files.read_tokenizer`.

        Args:
            directory: holds the files that travel with a model.
            tokenizer_json: a file of the tokenizers library to use instead of the directory's own.

        Raises:
            SourceError: there is no tokenizer, or a file of it is corrupt.
            ConfigError: the files describe a tokenizer that is not covered.
        """
        from tramontane.text.tokenizer_files import read_tokenizer

        return read_tokenizer(
            Path(directory), None if tokenizer_json is None else Path(tokenizer_json)
        )

    @property
    def backend(self) -> tokenizers.Tokenizer:
        """The tokenizer of the tokenizers library underneath."""
        return self._tokenizer

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included. The model's output may have more entries."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    @property
    def special_ids(self) -> frozenset[int]:
        """Tokens that `decode` leaves out on request."""
        return self._special

    @property
    def special_tokens(self) -> dict[str, str]:
        """The special tokens that chat templates know by name; only those there are."""
        named = {
            "bos_token": self.bos_token,
            "eos_token": self.eos_token,
            "unk_token": self.unk_token,
        }
        return {name: text for name, text in named.items() if text is not None}

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text.

        Special tokens written in the text are recognized. The beginning-of-sequence token is
        never doubled: a text that begins with it, as rendered chat templates do, gets no other.

        Args:
            text: any text that can be written as UTF-8.
            add_special_tokens: whether to put the model's special tokens around the text.

        Raises:
            ValidationError: ``text`` is no string, or holds half of a surrogate pair.
        """
        if not isinstance(text, str):
            raise ValidationError(f"the text to encode must be a string, not {type(text).__name__}")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as cause:
            raise ValidationError(
                f"the text is not valid Unicode: U+{ord(text[cause.start]):04X} at character "
                f"{cause.start} is half of a surrogate pair. Decode the input as UTF-8 first."
            ) from cause
        if self.add_bos is None and self.add_eos is None:
            ids = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
            bos = self.bos_token_id
            if add_special_tokens and bos is not None and ids[:2] == [bos, bos]:
                plain = self._plain(text)
                if ids[: len(plain) + 1] == [bos, *plain]:  # the second one is the text's own
                    del ids[0]
            return ids
        ids = self._plain(text)
        if add_special_tokens:
            bos, eos = self.bos_token_id, self.eos_token_id
            if self.add_bos and bos is not None and ids[:1] != [bos]:
                ids.insert(0, bos)
            if self.add_eos and eos is not None:
                ids.append(eos)
        return ids

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Text of token ids. Bytes that form no character become U+FFFD; ids that the vocabulary
        lacks give nothing.

        Raises:
            ValidationError: an id is negative, too large or no integer.
        """
        checked = [_checked(token_id) for token_id in ids]
        if skip_special_tokens:
            # By id, since a normalizer may have changed the text that the library compares.
            checked = [token_id for token_id in checked if token_id not in self._special]
        return self._tokenizer.decode(checked, skip_special_tokens=False)

    def token_to_id(self, token: str) -> int | None:
        """Id of a token as the vocabulary spells it, or None."""
        return self._tokenizer.token_to_id(token)

    def id_to_token(self, token_id: int) -> str | None:
        """How the vocabulary spells a token, or None if there is none of that id."""
        token_id = _checked(token_id)
        added = self._added.get(token_id)
        return added[0] if added is not None else self._tokenizer.id_to_token(token_id)

    def token_bytes(self, token_id: int) -> bytes:
        """The exact bytes a token adds to a text, as UTF-8 or a part of it.

        A leading space that `decode` drops at the beginning of a text is included. Special tokens
        give their text. Empty for an id that the vocabulary lacks.

        Raises:
            ValidationError: the id is negative, too large or no integer.
        """
        added = self._added.get(_checked(token_id))
        if added is not None:
            return added[0].encode("utf-8", "replace")
        token = self._tokenizer.id_to_token(token_id)
        return b"" if token is None else self._token_text.token_bytes(token)

    def piece(self, token_id: int, *, skip_special_tokens: bool = True) -> str | None:
        """What the decoder is given for a token; None if it is left out or unknown."""
        if skip_special_tokens and token_id in self._special:
            return None
        try:
            return self._pieces[token_id]
        except KeyError:
            piece = self._tokenizer.id_to_token(_checked(token_id))
            self._pieces[token_id] = piece
            return piece

    def text_stream(self) -> TextStream:
        """A new stream that turns pieces into text; see `tramontane.text.detokenizer`."""
        return self._token_text.stream()

    def _plain(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def _id(self, token: str | None) -> int | None:
        return None if token is None else self._tokenizer.token_to_id(token)


def _checked(token_id: object) -> int:
    if isinstance(token_id, bool) or not hasattr(token_id, "__index__"):
        raise ValidationError(f"a token id must be an integer, not {token_id!r}")
    value = token_id.__index__()
    if not 0 <= value < 2**32:
        raise ValidationError(f"token ids run from 0 to {2**32 - 1}, so {value} is none")
    return int(value)
