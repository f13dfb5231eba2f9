"""Tokenizers from raw vocabularies: lists of pieces, scores, merges, as weight files carry them.

Everything here gives a ready ``tokenizers.Tokenizer``; none adds BOS or EOS to what it encodes
unless said so.
"""

from tramontane.text.vocabulary.byte_level import byte_level_bpe
from tramontane.text.vocabulary.pieces import PieceType, register_special
from tramontane.text.vocabulary.pre_tokenizers import PRE_TOKENIZERS, PreTokenizer, pre_tokenizer
from tramontane.text.vocabulary.sentencepiece import (
    SentencePieceModel,
    merged_bpe,
    read_sentencepiece,
    sentencepiece_bpe,
    sentencepiece_from_file,
    unigram,
)
from tramontane.text.vocabulary.word_piece import word_piece

__all__ = [
    "PRE_TOKENIZERS",
    "PieceType",
    "PreTokenizer",
    "SentencePieceModel",
    "byte_level_bpe",
    "merged_bpe",
    "pre_tokenizer",
    "read_sentencepiece",
    "register_special",
    "sentencepiece_bpe",
    "sentencepiece_from_file",
    "unigram",
    "word_piece",
]
