"""Who owns which KV block.

A block is *free*, *idle* (free, but its content may be found again) or *in use* by one or more
sequences. Several sequences share a block only when it is full, so nobody writes to a shared one.
"""

from __future__ import annotations

from tramontane.cache.prefix import PrefixIndex, block_key
from tramontane.engine.metrics import Metrics
from tramontane.engine.sequence import Sequence


class BlockManager:
    """Hands out blocks, counts their users, finds prefixes again.

    Args:
        num_blocks: blocks of the cache.
        block_size: tokens a block.
        prefix_cache: True to keep what fits, a number to keep the blocks of that many finished
            sequences, False or 0 to share nothing.
        metrics: where hits and evictions are counted; None for its own.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        *,
        prefix_cache: bool | int = True,
        metrics: Metrics | None = None,
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.metrics = metrics or Metrics()
        # Low numbers first, last freed first: memory that has been touched is used again.
        self._free = list(range(num_blocks - 1, -1, -1))
        self._users = [0] * num_blocks
        self._promised: dict[bytes, Sequence] = {}
        self._index: PrefixIndex | None = None
        if prefix_cache:
            self._index = PrefixIndex(None if prefix_cache is True else int(prefix_cache))

    @property
    def num_available(self) -> int:
        """Blocks that can be handed out: free ones, and idle ones after eviction."""
        return len(self._free) + self.num_cached

    @property
    def num_cached(self) -> int:
        """Idle blocks, kept for their content."""
        return 0 if self._index is None else self._index.num_idle

    @property
    def num_used(self) -> int:
        return self.num_blocks - self.num_available

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def hash_prompt(self, seq: Sequence) -> None:
        """Compute the keys of the prompt's full blocks. Touches nothing but ``seq``, so any
        thread may do it before the sequence is queued."""
        if self._index is not None:
            self._extend_keys(seq, len(seq.prompt_ids))

    def awaits_other(self, seq: Sequence) -> bool:
        """Whether a running sequence is about to compute the next block that waiting ``seq``
        needs, so that waiting for it is cheaper than computing it twice."""
        if not self._promised or self._index is None:
            return False
        limit = self._shareable(seq)
        hits = len(self._index.match(seq.block_keys, limit))
        return hits < min(limit, len(seq.block_keys)) and seq.block_keys[hits] in self._promised

    def admit(self, seq: Sequence, *, reserve: int) -> bool:
        """Give a waiting sequence blocks for all its tokens, shared ones as far as its prefix is
        known; ``seq.num_computed`` becomes what they cover.

        Args:
            seq: owns no blocks.
            reserve: blocks that must stay available for others.

        Returns:
            False, with nothing changed, when there are too few.
        """
        hits: list[int] = []
        idle_hits = 0
        if self._index is not None:
            hits = self._index.match(seq.block_keys, self._shareable(seq))
            idle_hits = sum(map(self._index.is_idle, hits))
        missing = self.blocks_for(seq.num_tokens) - len(hits)
        if missing + idle_hits + reserve > self.num_available:
            return False
        for block in hits:
            self._use(block)
        seq.block_ids = hits + [self._allocate() for _ in range(missing)]
        seq.num_computed = len(hits) * self.block_size
        seq.num_hashed = len(hits)
        if self._index is not None:
            metrics = self.metrics
            metrics.prefix_lookup_tokens += seq.num_tokens
            metrics.prefix_hit_tokens += seq.num_computed
            metrics.prefix_hit_blocks += len(hits)
            metrics.prefix_miss_blocks += self._shareable(seq) - len(hits)
            for key in seq.block_keys[len(hits) :]:
                self._promised.setdefault(key, seq)
        return True

    def grow(self, seq: Sequence, num_tokens: int) -> bool:
        """Make room for ``num_tokens`` tokens in all. Returns False, with nothing changed, when
        blocks have run out."""
        missing = self.blocks_for(num_tokens) - len(seq.block_ids)
        if missing > self.num_available:
            return False
        for _ in range(missing):
            seq.block_ids.append(self._allocate())
        return True

    def computed(self, seq: Sequence) -> None:
        """``seq.num_computed`` has moved on: index the blocks that have become full."""
        if self._index is None:
            return
        full = seq.num_computed // self.block_size
        if full <= seq.num_hashed:
            return
        self._extend_keys(seq, full * self.block_size)
        for i in range(seq.num_hashed, full):
            key = seq.block_keys[i]
            self._index.add(key, seq.block_ids[i])
            if self._promised.get(key) is seq:
                del self._promised[key]
        seq.num_hashed = full

    def release(self, seq: Sequence, *, finished: bool) -> None:
        """Take all blocks from ``seq``; their contents may stay findable.

        Args:
            seq: may own none.
            finished: the sequence will not come back (it was not merely preempted).
        """
        if self._promised:
            for key in seq.block_keys[seq.num_hashed :]:
                if self._promised.get(key) is seq:
                    del self._promised[key]
        for block in reversed(seq.block_ids):  # ends of prefixes are evicted before beginnings
            self._users[block] -= 1
            if self._users[block]:
                continue
            if self._index is None or not self._index.put_back(block):
                self._free.append(block)
        seq.block_ids = []
        seq.num_hashed = 0
        if finished and self._index is not None:
            self._free += self._index.finish(seq.block_keys)

    def _shareable(self, seq: Sequence) -> int:
        """Blocks that may come from others: full ones, and at least one token is left over to
        compute logits from."""
        return (seq.num_tokens - 1) // self.block_size

    def _use(self, block: int) -> None:
        self._users[block] += 1
        if self._index is not None:
            self._index.take(block)

    def _allocate(self) -> int:
        if self._free:
            block = self._free.pop()
        else:
            assert self._index is not None, "the caller checked num_available"
            block = self._index.evict()
            self.metrics.prefix_evictions += 1
        self._users[block] = 1
        return block

    def _extend_keys(self, seq: Sequence, num_tokens: int) -> None:
        keys = seq.block_keys
        parent = keys[-1] if keys else seq.regime + seq.cache_root
        for start in range(len(keys) * self.block_size, num_tokens, self.block_size):
            if start + self.block_size > num_tokens:
                break
            parent = block_key(parent, seq.tokens(start, start + self.block_size))
            keys.append(parent)
