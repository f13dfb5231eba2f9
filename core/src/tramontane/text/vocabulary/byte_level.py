"""Byte-level BPE (GPT-2): tokens and merges over the printable alphabet of bytes."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tramontane.errors import CheckpointError
from tramontane.text.vocabulary.pieces import (
    PieceType,
    numbered,
    piece_types,
    register_special,
)
from tramontane.text.vocabulary.pre_tokenizers import PreTokenizer


def split_merges(merges: Sequence[str], ids: dict[str, int]) -> list[tuple[str, str]]:
    """``"left right"`` lines as pairs.

    Raises:
        CheckpointError: a line is not two pieces that the vocabulary has, and whose union it has.
    """
    pairs = []
    for line in merges:
        # From the second character on: a piece may itself begin with a space.
        cut = line.find(" ", 1)
        left, right = line[:cut], line[cut + 1 :]
        if cut < 0 or not {left, right, left + right} <= ids.keys():
            raise CheckpointError(f"the merge {line!r} does not join pieces of the vocabulary")
        pairs.append((left, right))
    return pairs


_NEVER_UTF8 = frozenset(map(chr, (0xC0, 0xC1, *range(0xF5, 0x100))))
"""Characters that stand for bytes which occur in no text."""


def _decoder(tokens: Sequence[str], kinds: Sequence[PieceType]) -> decoders.Decoder:
    """Alphabet to bytes. DeepSeek has user-defined tokens ``ü``, ``ö`` and so on, which are text
    but look like a byte; they are spelt out first."""
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    steps: list[decoders.Decoder] = [
        decoders.Replace(token, spell.pre_tokenize_str(token)[0][0])
        for token, kind in zip(tokens, kinds, strict=True)
        if kind is PieceType.USER_DEFINED and token in _NEVER_UTF8
    ]
    return decoders.Sequence([*steps, decoders.ByteLevel()]) if steps else decoders.ByteLevel()


def byte_level_bpe(
    tokens: Sequence[str],
    merges: Sequence[str],
    pre: PreTokenizer,
    *,
    types: Sequence[int] | None = None,
    special: Collection[int] = (),
) -> Tokenizer:
    """A byte-level BPE tokenizer.

    Args:
        tokens: texts by id, in GPT-2's alphabet.
        merges: ``"left right"`` in order of rank.
        pre: how text is cut into words.
        types: `PieceType` numbers by id, or None when all are normal.
        special: ids that are special whatever their type.

    Raises:
        CheckpointError: tokens repeat, types are too few, or a merge does not fit the tokens.
    """
    ids = numbered(tokens)
    kinds = piece_types(types, len(tokens))
    pairs = split_merges(merges, ids)
    model = models.BPE(vocab=ids, merges=pairs, ignore_merges=pre.ignore_merges)
    tokenizer = Tokenizer(model)
    if (normalizer := pre.normalizer()) is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre.build()
    tokenizer.decoder = _decoder(tokens, kinds)
    register_special(tokenizer, tokens, kinds, special=special)
    return tokenizer
