"""A model's tokenizer as ``tokenizer.ggml.*`` keys: the reverse of `tokenizer`."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from tramontane.errors import ConfigError, ModelLoadError
from tramontane.text.generation_config import eos_ids, read_generation_config
from tramontane.text.json_files import token_text
from tramontane.text.tokenizer import Tokenizer
from tramontane.text.tokenizer_files import special_tokens_config
from tramontane.text.vocabulary import PieceType, read_sentencepiece
from tramontane_gguf.export_words import SAMPLES, words_name
from tramontane_gguf.metadata import Metadata
from tramontane_gguf.tokenizer import embedded_tokenizer

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_NUM_PIECES = 2000
"""Of a vocabulary that are looked at to see whether it is read back equal."""

_ABSENT_SCORE = -1e4
"""Of a piece that the SentencePiece file does not have."""


def tokenizer_keys(
    tokenizer: Tokenizer, directory: Path, vocab_size: int, family: str
) -> dict[str, Any]:
    """Keys after ``tokenizer.ggml.``; strings, numbers, flags, and lists.

    Args:
        tokenizer: of the model.
        directory: where a ``tokenizer.model`` may lie, whose scores are then used.
        vocab_size: rows of the embedding; more than there are tokens are filled up.
        family: value of ``general.architecture``.

    Raises:
        ConfigError: a tokenizer that GGUF has no form for, or whose form would be read as another.
    """
    data = json.loads(tokenizer.backend.to_str())
    kind = data["model"].get("type")
    forms = _FORMS.get("byte-level" if kind == "BPE" and _is_byte_level(data) else kind)
    if forms is None:
        raise ConfigError(
            f"a {kind} tokenizer cannot be written to GGUF; BPE and Unigram tokenizers can"
        )
    tokens, types = _tokens(tokenizer.backend, data, vocab_size)
    shared = {"tokens": tokens, **_special(tokenizer, directory)}
    samples, failure = _samples(tokenizer, data), ""
    for form in forms:
        keys = {
            **shared,
            **form(_Source(tokenizer.backend, data, directory, family), tokens, types),
        }
        keys["token_type"] = [int(kind) for kind in types]
        failure = _misreading(keys, tokenizer, family, samples)
        if not failure:
            return keys
    raise ConfigError(f"GGUF has no form for the tokenizer: {failure}")


class _Source:
    """What a form is made from: the tokenizer, its description, and where its files are."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        data: Mapping[str, Any],
        directory: Path,
        family: str,
    ) -> None:
        self.backend, self.data, self.directory, self.family = backend, data, directory, family
        self.model: Mapping[str, Any] = data["model"]

    @property
    def merges(self) -> list[str]:
        return [m if isinstance(m, str) else " ".join(m) for m in self.model["merges"]]

    def changed(self, text: str) -> str:
        """A text as the model's pieces spell it."""
        if self.backend.normalizer is not None:
            text = self.backend.normalizer.normalize_str(text)
        if self.backend.pre_tokenizer is not None:
            text = "".join(p for p, _ in self.backend.pre_tokenizer.pre_tokenize_str(text))
        return text

    @property
    def spacing(self) -> dict[str, bool]:
        """What happens to spaces that a text has, and to the one it has not."""
        found = {"add_space_prefix": self.changed("a").startswith("▁")}
        if "▁▁" not in self.changed("a  a"):
            found["remove_extra_whitespaces"] = True
        return found


# The forms -------------------------------------------------------------------------------------


def _byte_level(source: _Source, tokens: list[str], types: list[PieceType]) -> dict[str, Any]:
    pre = words_name(source.backend, source.model, source.family)
    return {"model": "gpt2", "pre": pre, "merges": source.merges}


def _by_score(source: _Source, tokens: list[str], types: list[PieceType]) -> dict[str, Any]:
    """SentencePiece's BPE, which joins the pair that makes the piece with the highest score."""
    _spell(types, tokens, source.model.get("unk_token") or "<unk>")
    scores = _scores(tokens, source.merges, source.directory)
    return {"model": "llama", "pre": "default", "scores": scores, **source.spacing}


def _by_merges(source: _Source, tokens: list[str], types: list[PieceType]) -> dict[str, Any]:
    """The same pieces joined in the order of a list, which no scores amount to."""
    return {"model": "gemma4", "pre": "gemma4", "merges": source.merges, **source.spacing}


def _most_probable(source: _Source, tokens: list[str], types: list[PieceType]) -> dict[str, Any]:
    """SentencePiece's Unigram, which no reader of GGUF spells in bytes."""
    if source.model.get("byte_fallback") and any(_BYTE.fullmatch(text) for text in tokens):
        raise ConfigError(
            "a Unigram tokenizer with byte fallback cannot be written to GGUF, whose readers take "
            "the unknown token for what has no piece"
        )
    vocabulary, unknown = source.model["vocab"], source.model.get("unk_id")
    _spell(types, tokens, "" if unknown is None else vocabulary[unknown][0])
    known = {text: float(score) for text, score in vocabulary}
    keys: dict[str, Any] = {
        "model": "t5",
        "pre": "default",
        "scores": [known.get(text, _ABSENT_SCORE) for text in tokens],
        **source.spacing,
    }
    found = re.search(r'"precompiled_charsmap": "([^"]+)"', json.dumps(source.data["normalizer"]))
    if found:
        keys["precompiled_charsmap"] = np.frombuffer(base64.b64decode(found[1]), np.uint8)
    return keys


_Form = Callable[[_Source, list[str], list[PieceType]], dict[str, Any]]
_FORMS: Mapping[str, tuple[_Form, ...]] = {
    "byte-level": (_byte_level,),
    "BPE": (_by_score, _by_merges),
    "Unigram": (_most_probable,),
}
"""Kind of tokenizer → the forms it may take; the first that is read back equal is written."""


def _is_byte_level(data: Mapping[str, Any]) -> bool:
    return '"ByteLevel"' in json.dumps([data.get("pre_tokenizer"), data.get("decoder")])


# Their parts -----------------------------------------------------------------------------------


def _tokens(
    backend: tokenizers.Tokenizer, data: Mapping[str, Any], vocab_size: int
) -> tuple[list[str], list[PieceType]]:
    """Texts and kinds by id; ids that have no token are filled up."""
    texts = {index: text for text, index in backend.get_vocab(with_added_tokens=True).items()}
    if texts and max(texts) >= vocab_size:
        raise ConfigError(f"the tokenizer has id {max(texts)}, the model {vocab_size} tokens")
    kinds = dict.fromkeys(texts, PieceType.NORMAL)
    for token in data.get("added_tokens") or ():
        special = token["special"]
        kinds[token["id"]] = PieceType.CONTROL if special else PieceType.USER_DEFINED
    return (
        [texts.get(i, f"[PAD{i}]") for i in range(vocab_size)],
        [kinds.get(i, PieceType.UNUSED) for i in range(vocab_size)],
    )


def _spell(types: list[PieceType], tokens: list[str], unknown: str) -> None:
    """Mark byte pieces and the unknown piece of a SentencePiece vocabulary."""
    for index, text in enumerate(tokens):
        if _BYTE.fullmatch(text):
            types[index] = PieceType.BYTE
        elif text == unknown:
            types[index] = PieceType.UNKNOWN


def _scores(tokens: list[str], merges: list[str], directory: Path) -> list[float]:
    """Scores of the model's own SentencePiece file, or such that pieces are joined in the order of
    the merges."""
    file = directory / "tokenizer.model"
    if file.is_file():
        pieces = read_sentencepiece(file)
        known = dict(zip(pieces.pieces, pieces.scores, strict=True))
        return [float(known.get(text, _ABSENT_SCORE)) for text in tokens]
    rank: dict[str, int] = {}
    for index, merge in enumerate(merges):
        left, _, right = merge.partition(" ")
        rank.setdefault(left + right, index)
    last = float(len(rank) + 1)
    return [-float(rank[text]) if text in rank else -last for text in tokens]


def _special(tokenizer: Tokenizer, directory: Path) -> dict[str, Any]:
    """Ids of tokens with a meaning of their own, and which of them stand around a text."""
    before, after = _around(tokenizer)
    eos = tokenizer.eos_token_id if after is None else after
    # Of several tokens that end a turn, files have room for these.
    ends = eos_ids(read_generation_config(directory)) | {tokenizer.eos_token_id}
    others = sorted(index for index in ends if index not in (None, eos))
    padding = token_text(special_tokens_config(directory).get("pad_token"))
    named = {
        "bos": tokenizer.bos_token_id if before is None else before,
        "eos": eos,
        "unknown": tokenizer.unk_token_id,
        "padding": None if padding is None else tokenizer.token_to_id(padding),
        **dict(zip(("eot", "eom"), others, strict=False)),
    }
    keys: dict[str, Any] = {
        f"{name}_token_id": index for name, index in named.items() if index is not None
    }
    return keys | {"add_bos_token": before is not None, "add_eos_token": after is not None}


def _around(tokenizer: Tokenizer) -> tuple[int | None, int | None]:
    """The token before a text and the one after it, where there is exactly one: files can say no
    more, and what stands around a chat is its template's business."""
    text = tokenizer.encode("a", add_special_tokens=False)
    ids = tokenizer.encode("a")
    at = next((i for i in range(len(ids)) if ids[i : i + len(text)] == text), 0)
    before, after = ids[:at], ids[at + len(text) :]
    return (before[0] if len(before) == 1 else None), (after[0] if len(after) == 1 else None)


def _samples(tokenizer: Tokenizer, data: Mapping[str, Any]) -> list[str]:
    """Texts by which two tokenizers are compared: some that are cut differently, and pieces from
    the vocabulary's beginning to its end. They have no special tokens and no space in front, where
    readers differ in the space they add, and no characters that have no token, which each treats
    in its own way."""
    vocabulary = tokenizer.backend.get_vocab(with_added_tokens=False)
    special = [token["content"] for token in data.get("added_tokens") or ()]
    step = max(tokenizer.vocab_size // _NUM_PIECES, 1)
    pieces = (tokenizer.decode([index]) for index in range(0, tokenizer.vocab_size, step))
    plain = (p for p in pieces if "\ufffd" not in p and not any(mark in p for mark in special))
    texts = [*SAMPLES, " ".join(plain).lstrip()]
    if "<0x0A>" in vocabulary or _is_byte_level(data):
        return texts
    return ["".join(c for c in text if c in vocabulary or c == " ") for text in texts]


def _misreading(
    keys: Mapping[str, Any], tokenizer: Tokenizer, family: str, samples: Sequence[str]
) -> str:
    """How a reader of these keys would differ from the tokenizer; empty where it would not."""
    values: dict[str, Any] = {"general.architecture": family}
    for key, value in keys.items():
        numbers = isinstance(value, list) and value and not isinstance(value[0], str)
        values[f"tokenizer.ggml.{key}"] = np.array(value) if numbers else value
    try:
        embedded = embedded_tokenizer(Metadata(Path("the file"), values))
    except ModelLoadError as cause:
        return str(cause)
    assert embedded is not None
    for text in samples:
        found = embedded.tokenizer.encode(text, add_special_tokens=False).ids
        if found != tokenizer.encode(text, add_special_tokens=False):
            return f"{text[:20]!r}… would become other tokens"
    return ""
