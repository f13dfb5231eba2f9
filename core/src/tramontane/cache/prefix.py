"""Finding computed prefixes again: keys of full blocks and the index over them.

A block's key is a digest over its parent's key and its own tokens, so one key stands for the
whole prefix that ends there (the scheme of vLLM's automatic prefix caching). It is a
cryptographic digest because a collision would hand one request another's context.
"""

from __future__ import annotations

from array import array
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Sequence
from hashlib import blake2b


def block_key(parent: bytes, token_ids: Iterable[int]) -> bytes:
    """Key of a full block.

    Args:
        parent: key of the block before it; for the first block, a digest of whatever else K and
            V depend on (adapter, images), or ``b""``.
        token_ids: the block's tokens.
    """
    digest = blake2b(parent, digest_size=16)
    digest.update(array("q", token_ids).tobytes())
    return digest.digest()


class PrefixIndex:
    """Which block holds which prefix, which of those blocks are idle, and for how long idle
    ones may stay.

    An *idle* block belongs to no sequence; it keeps its content until it is evicted, least
    recently used first, or until the last of the ``max_finished`` most recently finished
    sequences that went through it has been forgotten.

    Args:
        max_finished: finished sequences whose blocks may stay; None for as many as fit.
    """

    def __init__(self, max_finished: int | None = None) -> None:
        self._max_finished = max_finished
        self._block_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._finished: deque[tuple[bytes, ...]] = deque()
        self._claims: Counter[bytes] = Counter()
        self.evictions = 0

    def __len__(self) -> int:
        return len(self._block_of)

    @property
    def num_idle(self) -> int:
        return len(self._idle)

    def __contains__(self, key: bytes) -> bool:
        return key in self._block_of

    def match(self, keys: Sequence[bytes], limit: int) -> list[int]:
        """Blocks of the longest known prefix, at most ``limit`` of them."""
        blocks: list[int] = []
        for key in keys[:limit]:
            block = self._block_of.get(key)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def is_idle(self, block: int) -> bool:
        return block in self._idle

    def add(self, key: bytes, block: int) -> None:
        """``block``, in use, now holds ``key``. A key that is known already keeps its block."""
        if key not in self._block_of:
            self._block_of[key] = block
            self._key_of[block] = key

    def take(self, block: int) -> None:
        """A sequence has begun to use ``block``, which may have been idle."""
        self._idle.pop(block, None)

    def put_back(self, block: int) -> bool:
        """The last sequence has left ``block``. Returns whether it stays, idle, for its content;
        otherwise it is simply free."""
        if block not in self._key_of:
            return False
        self._idle[block] = None
        return True

    def evict(self) -> int:
        """Forget the idle block that was used least recently, and return it."""
        block, _ = self._idle.popitem(last=False)
        del self._block_of[self._key_of.pop(block)]
        self.evictions += 1
        return block

    def finish(self, keys: Iterable[bytes]) -> list[int]:
        """A sequence that went through ``keys`` has finished. Returns the idle blocks that are
        forgotten because too many others have finished since theirs did."""
        if self._max_finished is None:
            return []
        known = tuple(keys)
        self._finished.append(known)
        self._claims.update(known)
        forgotten: list[int] = []
        while len(self._finished) > self._max_finished:
            forgotten += self._forget(self._finished.popleft())
        return forgotten

    def _forget(self, keys: tuple[bytes, ...]) -> list[int]:
        self._claims.subtract(keys)
        forgotten = []
        for key in keys:
            if self._claims[key] > 0:
                continue
            del self._claims[key]
            block = self._block_of.get(key)
            if block is not None and block in self._idle:
                del self._block_of[key], self._key_of[block], self._idle[block]
                forgotten.append(block)
        return forgotten
