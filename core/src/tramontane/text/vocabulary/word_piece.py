"""WordPiece (BERT)."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from tramontane.errors import CheckpointError
from tramontane.text.vocabulary.pieces import (
    PieceType,
    numbered,
    piece_types,
    register_special,
)


def word_piece(
    pieces: Sequence[str],
    *,
    types: Sequence[int] | None = None,
    unk_id: int,
    cls_id: int | None = None,
    sep_id: int | None = None,
    lowercase: bool = True,
) -> Tokenizer:
    """A BERT tokenizer from pieces that mark the *beginning* of words with ``▁``, as GGUF does.

    ``encode(..., add_special_tokens=True)`` puts [CLS] before and [SEP] after when both ids are
    given.

    Raises:
        CheckpointError: pieces repeat, types are too few, or an id lies outside the vocabulary.
    """
    kinds = piece_types(types, len(pieces))
    texts = [
        _with_continuation(piece) if kind is PieceType.NORMAL else piece
        for piece, kind in zip(pieces, kinds, strict=True)
    ]
    ids = numbered(texts)
    for index in (unk_id, cls_id, sep_id):
        if index is not None and not 0 <= index < len(texts):
            raise CheckpointError(f"special token {index} lies outside the {len(texts)} pieces")
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token=texts[unk_id]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    register_special(tokenizer, texts, kinds, special={unk_id})
    if cls_id is not None and sep_id is not None:
        tokenizer.post_processor = processors.BertProcessing(
            (texts[sep_id], sep_id), (texts[cls_id], cls_id)
        )
    return tokenizer


def _with_continuation(piece: str) -> str:
    """``▁word`` → ``word``, ``rest`` → ``##rest``; ``[unused1]`` and its like stay."""
    if piece.startswith("▁"):
        return piece[1:]
    if piece.startswith("[") and piece.endswith("]") and len(piece) > 2:
        return piece
    return f"##{piece}"
