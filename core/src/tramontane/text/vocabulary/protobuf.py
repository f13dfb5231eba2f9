"""The protobuf wire format, as much as reading a SentencePiece model takes.

https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import struct

from attrs import field, frozen


class WireError(ValueError):
    """The bytes are not a protobuf message, or a field is of another wire type."""


@frozen
class Message:
    """Fields by number, each with its values in order: varints as ints, fixed 32 and 64 bits and
    length-delimited ones as bytes."""

    fields: dict[int, list[int | bytes]] = field(factory=dict)

    def _last(self, number: int) -> int | bytes | None:
        # A scalar that occurs twice takes its last value.
        values = self.fields.get(number)
        return values[-1] if values else None

    def integer(self, number: int, default: int) -> int:
        value = self._last(number)
        if value is None:
            return default
        if not isinstance(value, int):
            raise WireError(f"field {number} is not a number")
        return value

    def signed(self, number: int, default: int) -> int:
        """An int32, which is sent sign-extended to 64 bits."""
        value = self.integer(number, default)
        return value - (1 << 64) if value >> 63 else value

    def float(self, number: int, default: float) -> float:
        value = self._last(number)
        if value is None:
            return default
        if not isinstance(value, bytes) or len(value) != 4:
            raise WireError(f"field {number} is not a float")
        result: float = struct.unpack("<f", value)[0]
        return result

    def data(self, number: int, default: bytes) -> bytes:
        value = self._last(number)
        if value is None:
            return default
        if not isinstance(value, bytes):
            raise WireError(f"field {number} is not a string of bytes")
        return value

    def text(self, number: int) -> str:
        try:
            return self.data(number, b"").decode()
        except UnicodeDecodeError as cause:
            raise WireError(f"field {number} is not valid UTF-8") from cause

    def message(self, number: int) -> Message:
        """An embedded message; an empty one where there is none."""
        return parse(self.data(number, b""))

    def messages(self, number: int) -> list[Message]:
        found = []
        for value in self.fields.get(number, []):
            if not isinstance(value, bytes):
                raise WireError(f"field {number} is not a message")
            found.append(parse(value))
        return found


def parse(data: bytes) -> Message:
    """Take a message apart.

    Raises:
        WireError: a value runs past the end, or has a wire type that protobuf lacks or no longer
            uses.
    """
    fields: dict[int, list[int | bytes]] = {}
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        value: int | bytes
        if wire == 0:
            value, at = _varint(data, at)
        elif wire in (1, 2, 5):
            length = {1: 8, 5: 4}.get(wire, 0)
            if wire == 2:
                length, at = _varint(data, at)
            if length > len(data) - at:
                raise WireError(f"field {number} runs past the end")
            value = data[at : at + length]
            at += length
        else:
            raise WireError(f"field {number} has wire type {wire}")
        if number == 0:
            raise WireError("field number 0 is not allowed")
        fields.setdefault(number, []).append(value)
    return Message(fields)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise WireError("a number runs past the end")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & ((1 << 64) - 1), at
    raise WireError("a number is longer than ten bytes")
