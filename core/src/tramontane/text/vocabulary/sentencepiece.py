"""SentencePiece vocabularies: BPE by score, Unigram, and ``tokenizer.model`` files.

SentencePiece: Kudo and Richardson, arXiv:1808.06226; Unigram: Kudo, arXiv:1804.10959. Its BPE has
no list of merges: whichever adjacent pair makes the piece with the highest score is joined first,
so merges can be derived by ranking every way to cut a piece in two by that piece's score.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from attrs import field, frozen
from tokenizers import Regex, Tokenizer, decoders, models, normalizers

from tramontane.errors import CheckpointError
from tramontane.text.vocabulary import protobuf
from tramontane.text.vocabulary.byte_level import split_merges
from tramontane.text.vocabulary.pieces import (
    PieceType,
    numbered,
    piece_types,
    register_special,
)

SPACE = "▁"


def sentencepiece_bpe(
    pieces: Sequence[str],
    scores: Sequence[float],
    *,
    types: Sequence[int] | None = None,
    unk_id: int = 0,
    add_space_prefix: bool = True,
    remove_extra_spaces: bool = False,
    special: Collection[int] = (),
    strips_right: Callable[[str], bool] = lambda piece: False,
) -> Tokenizer:
    """A SentencePiece BPE tokenizer.

    Args:
        pieces: texts by id, spaces written ``▁``.
        scores: by id; the pair that makes the highest is joined first.
        types: `PieceType` numbers by id, or None when all are normal.
        unk_id: the piece for what cannot be spelt, not even in bytes.
        add_space_prefix: whether text begins with a space it does not have.
        remove_extra_spaces: whether runs of spaces count as one, and none at the ends.
        special: ids that are special whatever their type.
        strips_right: which special tokens swallow white space that follows.

    Raises:
        CheckpointError: pieces repeat, scores or types are too few, or ``unk_id`` is no piece.
    """
    ids, kinds = _checked(pieces, types, unk_id)
    if len(scores) < len(pieces):
        raise CheckpointError(f"there are {len(pieces)} pieces but only {len(scores)} scores")
    mergeable = {
        text: index
        for text, index in ids.items()
        if kinds[index] is PieceType.NORMAL
        # A user-defined run of spaces cannot be matched in raw text, which has no ▁.
        or (kinds[index] is PieceType.USER_DEFINED and SPACE in text)
    }
    merges = _merges_by_score(mergeable, scores)
    return _spaced(
        _bpe(ids, merges, kinds, pieces[unk_id]),
        pieces,
        kinds,
        add_space_prefix=add_space_prefix,
        remove_extra_spaces=remove_extra_spaces,
        special=special,
        strips_right=strips_right,
    )


def merged_bpe(
    pieces: Sequence[str],
    merges: Sequence[str],
    *,
    types: Sequence[int] | None = None,
    unk_id: int = 0,
    add_space_prefix: bool = False,
    special: Collection[int] = (),
) -> Tokenizer:
    """The same alphabet and byte fallback with merges that the file lists, as Gemma 4 does.

    Raises:
        CheckpointError: as for `sentencepiece_bpe`, or a merge does not fit the pieces.
    """
    ids, kinds = _checked(pieces, types, unk_id)
    return _spaced(
        _bpe(ids, split_merges(merges, ids), kinds, pieces[unk_id]),
        pieces,
        kinds,
        add_space_prefix=add_space_prefix,
        special=special,
    )


def unigram(
    pieces: Sequence[str],
    scores: Sequence[float],
    *,
    types: Sequence[int] | None = None,
    unk_id: int = 0,
    add_space_prefix: bool = True,
    remove_extra_spaces: bool = True,
    charsmap: bytes = b"",
    special: Collection[int] = (),
) -> Tokenizer:
    """A SentencePiece Unigram tokenizer: the most probable segmentation.

    Args:
        charsmap: SentencePiece's precompiled normalization, or nothing.

    Raises:
        CheckpointError: as for `sentencepiece_bpe`, or ``charsmap`` is corrupt.
    """
    ids, kinds = _checked(pieces, types, unk_id)
    if len(scores) < len(pieces):
        raise CheckpointError(f"there are {len(pieces)} pieces but only {len(scores)} scores")
    by_bytes = PieceType.BYTE in kinds
    vocab = [(text, float(scores[index])) for text, index in ids.items()]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=unk_id, byte_fallback=by_bytes))
    return _spaced(
        tokenizer,
        pieces,
        kinds,
        add_space_prefix=add_space_prefix,
        remove_extra_spaces=remove_extra_spaces,
        charsmap=charsmap,
        special=special,
    )


def _checked(
    pieces: Sequence[str], types: Sequence[int] | None, unk_id: int
) -> tuple[dict[str, int], list[PieceType]]:
    ids = numbered(pieces)
    if not 0 <= unk_id < len(pieces):
        raise CheckpointError(f"the unknown token {unk_id} lies outside the {len(pieces)} pieces")
    return ids, piece_types(types, len(pieces))


def _merges_by_score(ids: dict[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    ranked = []
    for text, index in ids.items():
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in ids and right in ids:
                ranked.append((-scores[index], index, ids[left], ids[right], left, right))
    ranked.sort()
    return [(left, right) for *_, left, right in ranked]


def _bpe(
    ids: dict[str, int], merges: list[tuple[str, str]], kinds: Sequence[PieceType], unk: str
) -> Tokenizer:
    by_bytes = PieceType.BYTE in kinds
    model = models.BPE(
        vocab=ids, merges=merges, unk_token=unk, fuse_unk=True, byte_fallback=by_bytes
    )
    return Tokenizer(model)


def _spaced(
    tokenizer: Tokenizer,
    pieces: Sequence[str],
    kinds: Sequence[PieceType],
    *,
    add_space_prefix: bool,
    remove_extra_spaces: bool = False,
    charsmap: bytes = b"",
    special: Collection[int] = (),
    strips_right: Callable[[str], bool] = lambda piece: False,
) -> Tokenizer:
    """Normalizer, decoder and special tokens around a SentencePiece model."""
    before: list[normalizers.Normalizer] = []
    if charsmap:
        try:
            before.append(normalizers.Precompiled(charsmap))
        # The binding raises a bare Exception, or panics, on what it cannot parse.
        except BaseException as cause:
            if isinstance(cause, (KeyboardInterrupt, SystemExit)):
                raise
            raise CheckpointError(f"the normalization table is corrupt: {cause}") from None
    if remove_extra_spaces:
        before += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if add_space_prefix:
        before.append(normalizers.Prepend(SPACE))
    before.append(normalizers.Replace(" ", SPACE))
    tokenizer.normalizer = normalizers.Sequence(before)
    after = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if add_space_prefix:
        after.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(after)
    register_special(
        tokenizer,
        pieces,
        [
            PieceType.NORMAL if kind is PieceType.USER_DEFINED and SPACE in piece else kind
            for piece, kind in zip(pieces, kinds, strict=True)
        ],
        special=special,
        strips_right=strips_right,
    )
    return tokenizer


# tokenizer.model ------------------------------------------------------------------------------


@frozen(kw_only=True)
class SentencePieceModel:
    """A ``tokenizer.model`` file: SentencePiece's ``ModelProto``.

    Attributes:
        pieces, scores, types: by id.
        kind: ``"bpe"`` or ``"unigram"``.
        unk_id, bos_id, eos_id: special pieces; -1 where the model has none.
        add_space_prefix, remove_extra_spaces: SentencePiece's ``add_dummy_prefix`` and
            ``remove_extra_whitespaces``.
        charsmap: precompiled normalization, empty for none.
    """

    pieces: list[str]
    scores: list[float]
    types: list[int]
    kind: str
    unk_id: int = 0
    bos_id: int = 1
    eos_id: int = 2
    add_space_prefix: bool = True
    remove_extra_spaces: bool = True
    charsmap: bytes = field(default=b"", repr=False)

    def text_of(self, index: int) -> str | None:
        """The piece, or None for an id that the model does not have."""
        return self.pieces[index] if 0 <= index < len(self.pieces) else None

    def build(self) -> Tokenizer:
        """A tokenizer that encodes as SentencePiece does, without BOS and EOS."""
        if self.kind == "unigram":
            return unigram(
                self.pieces,
                self.scores,
                types=self.types,
                unk_id=self.unk_id,
                add_space_prefix=self.add_space_prefix,
                remove_extra_spaces=self.remove_extra_spaces,
                charsmap=self.charsmap,
            )
        return sentencepiece_bpe(
            self.pieces,
            self.scores,
            types=self.types,
            unk_id=self.unk_id,
            add_space_prefix=self.add_space_prefix,
            remove_extra_spaces=self.remove_extra_spaces,
        )


_UNIGRAM, _BPE = 1, 2


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """Read a ``tokenizer.model``.

    Field numbers are those of ``sentencepiece_model.proto``.

    Raises:
        CheckpointError: the file is no ``ModelProto``, or of a kind (word, char) that language
            models do not use.
    """
    try:
        data = path.read_bytes()
        message = protobuf.parse(data)
        pieces, scores, types = [], [], []
        for raw in message.messages(1):
            pieces.append(raw.text(1))
            scores.append(raw.float(2, 0.0))
            types.append(raw.integer(3, PieceType.NORMAL))
        trainer, normalizer = message.message(2), message.message(3)
        kind = trainer.integer(3, _UNIGRAM)
        model = SentencePieceModel(
            pieces=pieces,
            scores=scores,
            types=types,
            kind={_UNIGRAM: "unigram", _BPE: "bpe"}.get(kind, ""),
            unk_id=trainer.signed(40, 0),
            bos_id=trainer.signed(41, 1),
            eos_id=trainer.signed(42, 2),
            charsmap=normalizer.data(2, b""),
            add_space_prefix=bool(normalizer.integer(3, 1)),
            remove_extra_spaces=bool(normalizer.integer(4, 1)),
        )
    except (OSError, protobuf.WireError) as cause:
        raise CheckpointError(f"{path} is not a SentencePiece model: {cause}") from cause
    if not model.pieces:
        raise CheckpointError(f"{path} is not a SentencePiece model: it holds no pieces")
    if not model.kind:
        raise CheckpointError(
            f"{path} is a SentencePiece model of kind {kind}; need BPE or Unigram"
        )
    return model


def sentencepiece_from_file(path: Path) -> Tokenizer:
    """The tokenizer of a ``tokenizer.model``. Raises as `read_sentencepiece` does."""
    return read_sentencepiece(path).build()
