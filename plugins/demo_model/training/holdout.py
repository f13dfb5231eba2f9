"""Which examples are kept out of training: 5 % of them, chosen by a hash of their key."""

import zlib


def held_out(kind: str, *parts: object) -> bool:
    """Return whether the example named by `kind` and `parts` belongs to the test set."""
    key = "|".join([kind, *map(str, parts)])
    return zlib.crc32(key.encode()) % 20 == 0


def sum_held_out(a: int, b: int) -> bool:
    """Return whether `a + b` is held out; `b + a` then is too."""
    return held_out("sum", min(a, b), max(a, b))
