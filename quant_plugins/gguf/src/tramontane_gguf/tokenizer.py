"""The tokenizer that travels in a GGUF file: keys ``tokenizer.ggml.*``."""

from __future__ import annotations

from collections.abc import Sequence

import tokenizers

from tramontane.errors import CheckpointError, ConfigError
from tramontane.protocols import EmbeddedTokenizer
from tramontane.text.generation_config import END_OF_TURN
from tramontane.text.vocabulary import (
    PieceType,
    byte_level_bpe,
    merged_bpe,
    pre_tokenizer,
    sentencepiece_bpe,
    unigram,
    word_piece,
)
from tramontane_gguf.metadata import Metadata

_P = "tokenizer.ggml."

SPM, BPE, MERGED = ("llama", "replit", "gemma"), ("gpt2",), ("gemma4",)
UNIGRAM, WORD_PIECE = ("t5",), ("bert",)
MODELS = (*SPM, *BPE, *MERGED, *UNIGRAM, *WORD_PIECE)
"""Values of ``tokenizer.ggml.model`` by kind of vocabulary."""

ENDS = frozenset({
    *END_OF_TURN, "<|end|>", "<|endoftext|>", "<turn|>", "<EOT>", "_<EOT>", "[EOT]", "<|eot|>",
    "<|eom|>", "<｜end▁of▁sentence｜>", "<end_of_utterance>",
})  # fmt: skip
"""Control tokens that end a turn by their name, for files that name only one of several."""

# In OpenAI's harmony <|end|> closes one message of several; the answer goes on after it.
_HARMONY = ("<|return|>", "<|call|>", "<|end|>")

# Of Phi-3's special tokens, those that keep the white space after them.
_PHI3_KEEPS = ("<unk>", "<s>", "<|endoftext|>")


def embedded_tokenizer(meta: Metadata) -> EmbeddedTokenizer | None:
    """The file's tokenizer, or None when it carries none.

    Ids that lie outside the vocabulary are as good as absent: converters write 2³² - 1 for none.

    Raises:
        ConfigError: the kind of tokenizer or of pre-tokenizer is not known.
        CheckpointError: the vocabulary contradicts itself.
    """
    model = meta.text(_P + "model", "none")
    if model in ("none", "no_vocab"):
        return None
    if model not in MODELS:
        raise ConfigError(
            f"{meta.path}: tokenizer model {model!r} is not supported; known are "
            f"{', '.join(MODELS)}. "
            f"Give a tok_model_id whose tokenizer.json to use"
        )
    tokens = meta.texts(_P + "tokens")
    types = meta.integers(_P + "token_type") if _P + "token_type" in meta else None
    ids = _Ids(meta, tokens, spm=model in SPM)
    special = {index for index in ids.every if index is not None}
    try:
        tokenizer, add_bos = _build(meta, model, tokens, types, ids, special)
    except CheckpointError as cause:
        raise CheckpointError(f"{meta.path}: {cause}") from cause
    add_bos = meta.flag(_P + "add_bos_token", default=add_bos) and ids.bos is not None
    add_eos = meta.flag(_P + "add_eos_token", default=model in UNIGRAM) and ids.eos is not None
    template = "tokenizer.chat_template"
    return EmbeddedTokenizer(
        tokenizer=tokenizer,
        bos_token=ids.text(ids.bos),
        eos_token=ids.text(ids.eos),
        unk_token=ids.text(ids.unk),
        eos_token_ids=_ends(tokens, types, ids),
        add_bos=add_bos,
        add_eos=add_eos,
        chat_template=meta.text(template) if template in meta else None,
    )


class _Ids:
    """Special token ids, each one inside the vocabulary or None."""

    def __init__(self, meta: Metadata, tokens: Sequence[str], *, spm: bool) -> None:
        self._tokens = tokens

        def of(name: str, default: int = -1) -> int | None:
            key = f"{_P}{name}_token_id"
            index = meta.integer(key) if key in meta else default
            return index if 0 <= index < len(tokens) else None

        # SentencePiece's own numbering, which llama files may leave out.
        self.unk = of("unknown", 0 if spm else -1)
        self.bos = of("bos", 1 if spm else -1)
        self.eos = of("eos", 2 if spm else -1)
        self.eot, self.eom = of("eot"), of("eom")
        self.sep, self.cls = of("seperator"), of("cls")
        self.every = (self.unk, self.bos, self.eos, self.eot, self.eom)

    def text(self, index: int | None) -> str | None:
        return None if index is None else self._tokens[index]


def _build(
    meta: Metadata,
    model: str,
    tokens: list[str],
    types: list[int] | None,
    ids: _Ids,
    special: set[int],
) -> tuple[tokenizers.Tokenizer, bool]:
    """The tokenizer, and whether models of its kind begin with BOS."""
    if model in SPM:
        phi3 = meta.text("general.architecture", "") == "phi3"
        built = sentencepiece_bpe(
            tokens,
            meta.numbers(_P + "scores"),
            types=types,
            unk_id=ids.unk or 0,
            add_space_prefix=meta.flag(_P + "add_space_prefix", default=True),
            remove_extra_spaces=meta.flag(_P + "remove_extra_whitespaces", default=False),
            special=special,
            strips_right=lambda piece: phi3 and piece not in _PHI3_KEEPS,
        )
        return built, True
    if model in UNIGRAM:
        built = unigram(
            tokens,
            meta.numbers(_P + "scores"),
            types=types,
            unk_id=ids.unk or 0,
            add_space_prefix=meta.flag(_P + "add_space_prefix", default=True),
            remove_extra_spaces=meta.flag(_P + "remove_extra_whitespaces", default=False),
            charsmap=_charsmap(meta),
            special=special,
        )
        return built, False
    if model in WORD_PIECE:
        if ids.unk is None:
            raise CheckpointError(f"{_P}unknown_token_id is absent, which WordPiece needs")
        built = word_piece(
            tokens, types=types, unk_id=ids.unk, cls_id=ids.cls or ids.bos, sep_id=ids.sep
        )
        return built, False
    merges = meta.texts(_P + "merges")
    if model in MERGED:
        built = merged_bpe(
            tokens,
            merges,
            types=types,
            unk_id=ids.unk or 0,
            add_space_prefix=meta.flag(_P + "add_space_prefix", default=False),
            special=special,
        )
        return built, True
    if _P + "pre" not in meta:
        raise ConfigError(
            f"{meta.path} does not say how its tokenizer cuts words ({_P}pre); fetch a newer "
            f"conversion, or give a tok_model_id whose tokenizer.json to use"
        )
    pre = pre_tokenizer(meta.text(_P + "pre"))
    return byte_level_bpe(tokens, merges, pre, types=types, special=special), pre.add_bos


def _charsmap(meta: Metadata) -> bytes:
    """SentencePiece's precompiled normalization, or nothing; files have it as signed bytes too."""
    key = _P + "precompiled_charsmap"
    return bytes(number & 0xFF for number in meta.integers(key)) if key in meta else b""


def _ends(tokens: Sequence[str], types: list[int] | None, ids: _Ids) -> tuple[int, ...]:
    """Every id that ends a turn: those the file names, then control tokens known by name."""
    named = [index for index in (ids.eos, ids.eot, ids.eom) if index is not None]
    if types is None:
        return tuple(dict.fromkeys(named))
    marks = (PieceType.CONTROL, PieceType.USER_DEFINED)
    by_name = {
        token: index
        for index, (token, kind) in enumerate(zip(tokens, types, strict=False))
        if token in ENDS and kind in marks
    }
    if all(token in by_name for token in _HARMONY):
        del by_name["<|end|>"]
    return tuple(dict.fromkeys([*named, *by_name.values()]))
