"""What all kinds of vocabulary share: piece types, checks, special tokens."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from enum import IntEnum

from tokenizers import AddedToken, Tokenizer

from tramontane.errors import CheckpointError


class PieceType(IntEnum):
    """Kinds of piece, numbered as in SentencePiece's ``ModelProto`` and in GGUF."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


def piece_types(types: Sequence[int] | None, count: int) -> list[PieceType]:
    """``types`` checked, or all normal when there are none.

    Raises:
        CheckpointError: there are fewer types than pieces. Numbers that name no type count as
            normal, as 0 (undefined) does.
    """
    if types is None:
        return [PieceType.NORMAL] * count
    if len(types) < count:
        raise CheckpointError(f"the vocabulary has {count} pieces but only {len(types)} types")
    known = {int(kind): kind for kind in PieceType}
    return [known.get(int(kind), PieceType.NORMAL) for kind in types[:count]]


def numbered(pieces: Sequence[str]) -> dict[str, int]:
    """Piece → id. An empty piece, which could never be produced, gets a placeholder text.

    Raises:
        CheckpointError: there are no pieces, or two are the same.
    """
    if not pieces:
        raise CheckpointError("the vocabulary is empty")
    ids: dict[str, int] = {}
    for index, piece in enumerate(pieces):
        text = piece or f"[EMPTY_{index}]"
        if text in ids:
            raise CheckpointError(f"the vocabulary has {text!r} twice, as {ids[text]} and {index}")
        ids[text] = index
    return ids


def register_special(
    tokenizer: Tokenizer,
    pieces: Sequence[str],
    types: Sequence[PieceType],
    *,
    special: Collection[int] = (),
    strips_right: Callable[[str], bool] = lambda piece: False,
) -> None:
    """Make control, unknown and user-defined pieces tokens that are matched as a whole.

    Args:
        tokenizer: changed in place.
        pieces: texts by id.
        types: kinds by id. User-defined pieces are text; the others are special, left out by
            ``decode(..., skip_special_tokens=True)``.
        special: further ids that are special whatever their type (BOS, EOS and their like).
        strips_right: which of them swallow white space that follows.
    """
    tokens = []
    for index, (piece, kind) in enumerate(zip(pieces, types, strict=True)):
        is_special = kind in (PieceType.CONTROL, PieceType.UNKNOWN) or index in special
        if piece and (is_special or kind is PieceType.USER_DEFINED):
            rstrip = strips_right(piece)
            tokens.append(AddedToken(piece, normalized=False, special=is_special, rstrip=rstrip))
    tokenizer.add_tokens(tokens)
