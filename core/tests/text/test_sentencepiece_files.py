"""SentencePiece models as files: the wire format, and what is no model."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tramontane.errors import CheckpointError
from tramontane.text.vocabulary import PieceType, protobuf, read_sentencepiece


def model_proto() -> bytes:
    def field(number: int, wire: int, payload: bytes) -> bytes:
        length = bytes([len(payload)]) if wire == 2 else b""
        key = number << 3 | wire
        head = bytes([key]) if key < 128 else bytes([key & 0x7F | 0x80, key >> 7])
        return head + length + payload

    pieces = b"".join(
        field(1, 2, field(1, 2, text.encode()) + field(2, 5, struct.pack("<f", score)) + kind)
        for text, score, kind in (
            ("<unk>", 0.0, field(3, 0, bytes([PieceType.UNKNOWN]))),
            ("▁a", -1.0, b""),
            ("▁", -2.0, b""),
            ("a", -2.0, b""),
        )
    )
    minus_one = b"\xff" * 9 + b"\x01"
    trainer = field(3, 0, b"\x02") + field(41, 0, minus_one)
    return pieces + field(2, 2, trainer) + field(3, 2, field(4, 0, b"\x00"))


def test_a_model_written_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(model_proto())
    model = read_sentencepiece(path)
    assert model.pieces == ["<unk>", "▁a", "▁", "a"]
    assert model.types == [2, 1, 1, 1]
    assert (model.bos_id, model.eos_id, model.remove_extra_spaces) == (-1, 2, False)
    assert model.build().encode("a", add_special_tokens=False).ids == [1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no pieces"),
        (b"\x0a\xff", "past the end"),
        (b"\x0a\x05ab", "past the end"),
        (b"\x0b", "wire type 3"),
        (b"\xff" * 12, "longer than ten bytes"),
        (b"\x08\x01", "field 1 is not a message"),
        (b"\x0a\x04\x0a\x02\xff\xfe", "not valid UTF-8"),
        (b"\x0a\x03\x0a\x01a\x12\x02\x18\x04", "of kind 4"),
        (b"\x00\x00", "field number 0"),
    ],
)
def test_files_that_are_no_model(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_sentencepiece(path)
    with pytest.raises(CheckpointError, match="No such file"):
        read_sentencepiece(tmp_path / "absent.model")


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=80))
def test_any_bytes_parse_or_are_refused(content: bytes) -> None:
    with contextlib.suppress(protobuf.WireError):
        protobuf.parse(content)
