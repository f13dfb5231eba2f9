"""How tokens become text, one token at a time, exactly as a tokenizer's decoder does it at once.

A tokenizer file names a decoder. Four kinds cover language models:

- byte level: every character of a token stands for one byte (GPT-2's alphabet);
- pieces: SentencePiece text with ``▁`` for a space and ``<0x0A>`` for a byte;
- metaspace: SentencePiece text alone;
- any other (WordPiece, BPE with end-of-word suffix …), which is asked about two tokens at a time.

Each has a `TextStream` that keeps only what the next token can still change.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import tokenizers
from attrs import field, frozen

REPLACEMENT = "\ufffd"
Replacements = tuple[tuple[str, str], ...]
"""``(old, new)`` in order."""
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2}|\+[0-9A-Fa-f])>")


class TextStream(Protocol):
    """Text of a growing sequence of tokens."""

    def prime(self, tokens: Sequence[str]) -> None:
        """Take the tokens that came before the text of interest; called at most once, first."""
        ...

    def push(self, token: str) -> str:
        """The text that is certain now, in whole characters."""
        ...

    def flush(self) -> str:
        """What was held back, with U+FFFD for characters that stay incomplete."""
        ...


class TokenText(Protocol):
    """One kind of decoder."""

    def stream(self) -> TextStream:
        """A new stream that has seen nothing."""
        ...

    def token_bytes(self, token: str) -> bytes:
        """The bytes one token stands for, wherever it occurs."""
        ...


def token_text_of(tokenizer: tokenizers.Tokenizer) -> TokenText:
    """Recognize the decoder of a tokenizer."""
    decoder = tokenizer.decoder
    if decoder is None:
        return JoinedText(" ".join)
    steps = _flatten(json.loads(decoder.__getstate__()))
    if len(steps) == 1 and steps[0]["type"] == "Metaspace":
        return MetaspaceText(steps[0]["replacement"], steps[0]["prepend_scheme"] != "never")
    replacements, rest = _leading_replacements(steps)
    if [step["type"] for step in rest] == ["ByteLevel"]:
        return ByteLevelText(replacements)
    return _pieces(replacements, rest) or JoinedText(decoder.decode)


def _flatten(step: dict[str, Any]) -> list[dict[str, Any]]:
    if step["type"] != "Sequence":
        return [step]
    return [inner for decoder in step["decoders"] for inner in _flatten(decoder)]


def _leading_replacements(
    steps: list[dict[str, Any]],
) -> tuple[Replacements, list[dict[str, Any]]]:
    """Replacements of plain text that each token undergoes first, and the other steps."""
    count = 0
    while (
        count < len(steps)
        and steps[count]["type"] == "Replace"
        and "String" in steps[count]["pattern"]
    ):
        count += 1
    pairs = tuple((step["pattern"]["String"], step["content"]) for step in steps[:count])
    return pairs, steps[count:]


def _pieces(replacements: Replacements, steps: list[dict[str, Any]]) -> PieceText | None:
    """``ByteFallback? (Fuse Strip?)?``, or None if the steps are others."""
    rest = list(steps)
    byte_fallback = bool(rest) and rest[0]["type"] == "ByteFallback"
    del rest[:byte_fallback]
    fuse = bool(rest) and rest[0]["type"] == "Fuse"
    del rest[:fuse]
    strip, content = 0, " "
    if fuse and rest and rest[0]["type"] == "Strip" and rest[0]["stop"] == 0:
        step = rest.pop(0)
        strip, content = step["start"], step["content"]
    if rest:
        return None
    return PieceText(replacements, byte_fallback, strip, content)


def _replaced(token: str, replacements: Replacements) -> str:
    for old, new in replacements:
        token = token.replace(old, new)
    return token


# -- byte level --------------------------------------------------------------------------------


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 characters stand for themselves, the other bytes for the
    characters from U+0100 on, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update({chr(0x100 + index): byte for index, byte in enumerate(others)})
    return alphabet


BYTE_ALPHABET = _byte_alphabet()


@frozen
class ByteLevelText:
    """Tokens spelled in GPT-2's byte alphabet, once ``replacements`` are made."""

    replacements: Replacements = ()

    def stream(self) -> ByteLevelStream:
        return ByteLevelStream(self.token_bytes)

    def token_bytes(self, token: str) -> bytes:
        token = _replaced(token, self.replacements)
        try:
            return bytes([BYTE_ALPHABET[char] for char in token])
        except KeyError:  # an added token, written as plain text
            return token.encode("utf-8", "replace")


class ByteLevelStream:
    """UTF-8 decoded across tokens; only an unfinished character is held back."""

    def __init__(self, token_bytes: Callable[[str], bytes]) -> None:
        self._bytes = token_bytes
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def prime(self, tokens: Sequence[str]) -> None:
        tail = b""
        for token in reversed(tokens):
            tail = self._bytes(token) + tail
            if len(tail) >= 4:  # the longest character: nothing before it can matter
                break
        self._utf8.decode(tail[-4:])

    def push(self, token: str) -> str:
        return self._utf8.decode(self._bytes(token))

    def flush(self) -> str:
        text = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return text


# -- SentencePiece pieces ----------------------------------------------------------------------


@frozen
class PieceText:
    """Pieces with replacements, byte tokens, and spaces stripped from the very beginning.

    Attributes:
        replacements: ``(old, new)`` in order.
        byte_fallback: whether ``<0x0A>`` stands for a byte.
        strip: how many of ``strip_char`` the beginning of the text loses at most.
        strip_char: one character.
    """

    replacements: Replacements = ()
    byte_fallback: bool = False
    strip: int = 0
    strip_char: str = field(default=" ")

    def stream(self) -> PieceStream:
        return PieceStream(self)

    def token_bytes(self, token: str) -> bytes:
        byte = self.byte(token)
        return self.replaced(token).encode("utf-8", "replace") if byte is None else bytes([byte])

    def byte(self, token: str) -> int | None:
        """The byte a byte token stands for."""
        if not self.byte_fallback:
            return None
        match = _BYTE_TOKEN.fullmatch(token)
        return None if match is None else int(match[1], 16)

    def replaced(self, token: str) -> str:
        """Text of a token that is no byte."""
        return _replaced(token, self.replacements)


class PieceStream:
    """Bytes are decoded a run at a time.

    The decoder of the tokenizers library turns a run of byte tokens into text only if the whole
    run is valid, and into one U+FFFD a byte otherwise. So a run is held back until it ends, or
    until it can no longer become valid.
    """

    def __init__(self, kind: PieceText) -> None:
        self._kind = kind
        self._strip = kind.strip
        self._utf8 = codecs.getincrementaldecoder("utf-8")("strict")
        self._run_text = ""
        self._run_length = 0
        self._broken = False

    def prime(self, tokens: Sequence[str]) -> None:
        for token in tokens:
            if not self._strip:
                break
            self.push(token)
        self.flush()
        run = bytearray()
        for token in reversed(tokens):
            byte = self._kind.byte(token)
            if byte is None:
                break
            run.append(byte)
        run.reverse()
        try:
            self._utf8.decode(run)
        except UnicodeDecodeError:
            self._utf8.reset()
            self._broken = True
        # Whole characters of the run belong to the tokens before; an unfinished one goes on here.
        self._run_length = len(self._utf8.getstate()[0])

    def push(self, token: str) -> str:
        byte = self._kind.byte(token)
        if byte is None:
            return self._stripped(self._end_run() + self._kind.replaced(token))
        if self._broken:
            return self._stripped(REPLACEMENT)
        self._run_length += 1
        try:
            self._run_text += self._utf8.decode(bytes([byte]))
        except UnicodeDecodeError:
            text = self._end_run(valid=False)
            self._broken = True
            return self._stripped(text)
        return ""

    def flush(self) -> str:
        return self._stripped(self._end_run())

    def _end_run(self, *, valid: bool = True) -> str:
        text, length = self._run_text, self._run_length
        unfinished = bool(self._utf8.getstate()[0])
        self._utf8.reset()
        self._run_text, self._run_length, self._broken = "", 0, False
        return text if valid and not unfinished else REPLACEMENT * length

    def _stripped(self, text: str) -> str:
        if not self._strip or not text:
            return text
        count = 0
        while count < min(self._strip, len(text)) and text[count] == self._kind.strip_char:
            count += 1
        text = text[count:]
        self._strip = 0 if text else self._strip - count
        return text


# -- metaspace ---------------------------------------------------------------------------------


@frozen
class MetaspaceText:
    """Pieces with a character for the space; the first piece loses it if it was prepended."""

    replacement: str
    prepended: bool

    def stream(self) -> MetaspaceStream:
        return MetaspaceStream(self)

    def token_bytes(self, token: str) -> bytes:
        return token.replace(self.replacement, " ").encode("utf-8", "replace")


class MetaspaceStream:
    """Nothing is held back: every piece is whole text."""

    def __init__(self, kind: MetaspaceText) -> None:
        self._kind = kind
        self._first = True

    def prime(self, tokens: Sequence[str]) -> None:
        self._first = not tokens

    def push(self, token: str) -> str:
        space = "" if self._first and self._kind.prepended else " "
        self._first = False
        return token.replace(self._kind.replacement, space)

    def flush(self) -> str:
        return ""


# -- any other decoder -------------------------------------------------------------------------


@frozen
class JoinedText:
    """A decoder known only by what it makes of a list of tokens."""

    decode: Callable[[list[str]], str]

    def stream(self) -> JoinedStream:
        return JoinedStream(self.decode)

    def token_bytes(self, token: str) -> bytes:
        return self.decode([token]).encode("utf-8", "replace")


class JoinedStream:
    """What a token adds is what the decoder adds for it after the token before."""

    _MAX_HELD = 4  # bytes of the longest character, so tokens that may share one

    def __init__(self, decode: Callable[[list[str]], str]) -> None:
        self._decode = decode
        self._before: list[str] = []
        self._held: list[str] = []

    def prime(self, tokens: Sequence[str]) -> None:
        self._before = list(tokens[-1:])

    def push(self, token: str) -> str:
        self._held.append(token)
        text = self._added()
        if text.endswith(REPLACEMENT) and len(self._held) < self._MAX_HELD:
            return ""
        self._before, self._held = [token], []
        return text

    def flush(self) -> str:
        text = self._added() if self._held else ""
        self._before, self._held = self._held[-1:] or self._before, []
        return text

    def _added(self) -> str:
        before = self._decode(self._before) if self._before else ""
        return self._decode(self._before + self._held).removeprefix(before)
