"""A model's tokenizer as ``tokenizer.ggml.*`` keys: the reverse of `tokenizer`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers

from tramontane.errors import ConfigError
from tramontane.text.tokenizer import Tokenizer
from tramontane.text.vocabulary import (
    PRE_TOKENIZERS,
    PieceType,
    PreTokenizer,
    read_sentencepiece,
)

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_SAMPLES = (
    "Hello, World! It's 3.14159 o'clock; we'LL see   12345678 things\n\n\tfoo_bar(x) := {1,2}\r\n",
    "naïve Ünïcode ΑΒΓ кириллица 漢字かな한국어 emoji 🙂🚀 Ⅷ ½ ²³ a̐éö̲ ﬁ  \n \n  end 's'S 'RE",
    "camelCase HTTPServer I'm XMLHttp request//path\\n $100,000.00 +-*/=<> «»…—“quotes”   ",
)
"""Texts that the known ways of cutting text into words cut differently."""

_USUAL = {"glm4": "glm4", "phi2": "phi-2", "starcoder2": "starcoder"}
"""Family → the name its files use for its way, of several names for the same."""


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
        ConfigError: a tokenizer that GGUF has no form for.
    """
    data = json.loads(tokenizer.backend.to_str())
    model = data["model"]
    if model.get("type") != "BPE":
        raise ConfigError(
            f"a {model.get('type')} tokenizer cannot be written to GGUF; BPE tokenizers can"
        )
    byte_level = '"ByteLevel"' in json.dumps([data.get("pre_tokenizer"), data.get("decoder")])
    tokens, types = _tokens(tokenizer.backend, data, vocab_size)
    keys: dict[str, Any] = {"tokens": tokens}
    if byte_level:
        keys |= {"model": "gpt2", "pre": _pre(tokenizer.backend, model, family)}
        keys["merges"] = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    else:
        _spell(types, tokens, model)
        keys |= {"model": "llama", "pre": "default"}
        keys["scores"] = _scores(tokens, model, directory)
        keys["add_space_prefix"] = _prefixes(tokenizer.backend)
    keys["token_type"] = [int(kind) for kind in types]
    named = {
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "unknown": tokenizer.unk_token_id,
    }
    keys |= {f"{name}_token_id": index for name, index in named.items() if index is not None}
    ids = tokenizer.encode("a")
    keys["add_bos_token"] = named["bos"] is not None and ids[:1] == [named["bos"]]
    keys["add_eos_token"] = named["eos"] is not None and ids[-1:] == [named["eos"]]
    return keys


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


def _spell(types: list[PieceType], tokens: list[str], model: Mapping[str, Any]) -> None:
    """Mark byte pieces and the unknown piece of a SentencePiece vocabulary."""
    unknown = model.get("unk_token") or "<unk>"
    for index, text in enumerate(tokens):
        if _BYTE.fullmatch(text):
            types[index] = PieceType.BYTE
        elif text == unknown:
            types[index] = PieceType.UNKNOWN


def _scores(tokens: list[str], model: Mapping[str, Any], directory: Path) -> list[float]:
    """Scores of the model's own SentencePiece file, or such that pieces are joined in the order of
    the merges."""
    file = directory / "tokenizer.model"
    if file.is_file():
        pieces = read_sentencepiece(file)
        known = dict(zip(pieces.pieces, pieces.scores, strict=True))
        return [float(known.get(text, -1e4)) for text in tokens]
    rank: dict[str, int] = {}
    for index, merge in enumerate(model["merges"]):
        rank.setdefault("".join(merge.split(" ") if isinstance(merge, str) else merge), index)
    last = float(len(rank) + 1)
    return [-float(rank[text]) if text in rank else -last for text in tokens]


def _prefixes(backend: tokenizers.Tokenizer) -> bool:
    """Whether a text begins with a space it does not have."""
    text = "a"
    if backend.normalizer is not None:
        text = backend.normalizer.normalize_str(text)
    if backend.pre_tokenizer is not None:
        pieces = backend.pre_tokenizer.pre_tokenize_str(text)
        text = pieces[0][0] if pieces else text
    return text.startswith("▁")


def _pre(backend: tokenizers.Tokenizer, model: Mapping[str, Any], family: str) -> str:
    """The known way of cutting text into words that does what this tokenizer does."""
    whole = bool(model.get("ignore_merges"))
    wanted = [_cut(backend.normalizer, backend.pre_tokenizer, text) for text in _SAMPLES]

    def fits(kind: PreTokenizer) -> bool:
        if kind.ignore_merges != whole:
            return False
        pre, normalizer = kind.build(), kind.normalizer()
        return all(
            _cut(normalizer, pre, text) == cut for text, cut in zip(_SAMPLES, wanted, strict=True)
        )

    usual = _USUAL.get(family)
    if usual is not None and fits(PRE_TOKENIZERS[usual]):
        return usual
    tried: dict[int, bool] = {}
    for name, kind in PRE_TOKENIZERS.items():
        if id(kind) not in tried:
            tried[id(kind)] = fits(kind)
        if tried[id(kind)]:
            return name
    # One that does not cut at all, with merges that never reach across GPT-2's cuts.
    if _encodes_alike(backend, PRE_TOKENIZERS["gpt-2"]):
        return "gpt-2"
    raise ConfigError(
        "the tokenizer cuts text into words in a way that GGUF has no name for; a file without "
        "it would be read wrongly"
    )


def _encodes_alike(backend: tokenizers.Tokenizer, kind: PreTokenizer) -> bool:
    """Whether the samples become the same tokens when words are cut in this way."""
    other = tokenizers.Tokenizer.from_str(backend.to_str())
    other.pre_tokenizer = kind.build()
    return all(
        other.encode(text, add_special_tokens=False).ids
        == backend.encode(text, add_special_tokens=False).ids
        for text in _SAMPLES
    )


def _cut(normalizer: Any, pre: Any, text: str) -> list[str]:
    if normalizer is not None:
        text = normalizer.normalize_str(text)
    return [piece for piece, _ in pre.pre_tokenize_str(text)] if pre is not None else [text]
