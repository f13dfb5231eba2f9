"""Damage to files, drawn from a seed: the same seed damages the same file in the same way."""

from __future__ import annotations

import re
from collections.abc import Sequence
from random import Random

EXTREMES = (
    0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 1 << 20, 1 << 24, 0x7FFF_FFFF, 0x8000_0000,
    0xFFFF_FFFF, 1 << 32, 1 << 40, (1 << 62) + 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1,
)  # fmt: skip
"""Values that counts, lengths, offsets, types and sizes are replaced by."""

FLOATS = (0x7F80_0000, 0xFF80_0000, 0x7FC0_0000, 0xBF80_0000, 0x7F7F_FFFF, 0xFFF0 << 48)
"""The same for floats: infinities, no number, -1, the largest."""

_TEXT_VALUES = (
    b"0", b"-1", b"1.5", b"4294967296", b"9223372036854775807", b"18446744073709551616", b"1e999",
    b"NaN", b"null", b"true", b"[]", b"{}", b'""', b'"F32"', b'"\\ud800"', b"[0]", b"[0,0]",
    b"[0,9223372036854775807,9223372036854775807]",
)  # fmt: skip
"""Values that numbers of a JSON header are replaced by."""

_WORD = re.compile(rb"[\x20-\x7e]{3,}")
_NUMBER = re.compile(rb"\d+")


def mutate(
    data: bytes, header: int, other: bytes, random: Random, spots: Sequence[int] = ()
) -> bytes:
    """``data`` with one to three damages.

    Args:
        data: a valid file.
        header: how many of its first bytes are no numbers of tensors; most damage is done there.
        other: another valid file, to splice with.
        random: where choices come from.
        spots: where single numbers stand; half of the damage is done there.
    """
    result = bytearray(data)
    if spots and random.random() < 0.6:
        for _ in range(random.choice((1, 1, 2))):
            _put(result, random.choice(spots), random)
        return bytes(result)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        if result:
            random.choices((_flip, _replace, _beside, _text, _cut, _repeat, _splice),
                           (3, 4, 6, 3, 1, 1, 1))[0](result, header, other, random)  # fmt: skip
    return bytes(result)


def _place(data: bytearray, header: int, random: Random) -> int:
    end = min(header, len(data)) if random.random() < 0.85 else len(data)
    return random.randrange(max(end, 1))


def _flip(data: bytearray, header: int, other: bytes, random: Random) -> None:
    data[_place(data, header, random)] ^= 1 << random.randrange(8)


def _put(data: bytearray, at: int, random: Random) -> None:
    size = random.choice((1, 4, 4, 8))
    some = (len(data), len(data) - at, random.randrange(16), random.randrange(1 << 16))
    value = random.choice((*EXTREMES, *FLOATS, *some))
    at = max(min(at, len(data) - size), 0)
    data[at : at + size] = (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")


def _replace(data: bytearray, header: int, other: bytes, random: Random) -> None:
    """A number anywhere."""
    _put(data, _place(data, header, random), random)


def _beside(data: bytearray, header: int, other: bytes, random: Random) -> None:
    """A number before or behind a name: its length, the type and value of a key, a dimension."""
    words = list(_WORD.finditer(data, 0, min(header, len(data))))
    if not words:
        return _replace(data, header, other, random)
    word = random.choice(words)
    before = (-8, -4, -12, -16)
    offset = random.choice(before) if random.random() < 0.3 else None
    at = word.start() + offset if offset else word.end() + random.choice((0, 4, 4, 8, 12, 16, 20))
    return _put(data, max(at, 0), random)


def _text(data: bytearray, header: int, other: bytes, random: Random) -> None:
    """A number of a JSON header, leaving its length field right; elsewhere, letters."""
    if data[8:9] == b"{" and len(data) > 16:
        length = int.from_bytes(data[:8], "little")
        numbers = list(_NUMBER.finditer(data, 8, min(8 + length, len(data))))
        if numbers:
            number = random.choice(numbers)
            value = random.choice(_TEXT_VALUES)
            data[number.start() : number.end()] = value
            length += len(value) - len(number[0])
            data[:8] = (length & (1 << 64) - 1).to_bytes(8, "little")
            return
    words = list(_WORD.finditer(data, 0, min(header, len(data))))
    if words:
        a, b = random.choice(words), random.choice(words)
        size = min(len(a[0]), len(b[0]))
        data[a.start() : a.start() + size] = b[0][:size]


def _cut(data: bytearray, header: int, other: bytes, random: Random) -> None:
    start = _place(data, header, random)
    stop = len(data) if random.random() < 0.5 else start + random.choice((1, 4, 8, 32))
    del data[start:stop]


def _repeat(data: bytearray, header: int, other: bytes, random: Random) -> None:
    start = _place(data, header, random)
    size = random.choice((1, 4, 8, 32, 256))
    data[start:start] = data[start : start + size]


def _splice(data: bytearray, header: int, other: bytes, random: Random) -> None:
    if not other:
        return
    at = _place(data, header, random)
    data[at:] = other[random.choice((at, random.randrange(len(other)))) :]
