"""How many KV blocks a memory budget gives."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from attrs import frozen

from tramontane.errors import MemoryPlanError
from tramontane.protocols.cache import CacheSpec


@frozen
class CachePlan:
    """A cache that fits.

    Attributes:
        num_blocks: KV blocks.
        block_size: tokens a block.
        nbytes: bytes of all layers together, recurrent state included.
    """

    num_blocks: int
    block_size: int
    nbytes: int

    @property
    def num_tokens(self) -> int:
        """Tokens the cache holds, of all sequences together."""
        return self.num_blocks * self.block_size


def plan_cache(
    specs: Sequence[CacheSpec],
    *,
    dtype: torch.dtype,
    budget_bytes: int,
    max_seq_len: int,
    max_seqs: int,
    block_size: int = 32,
    context_tokens: int | None = None,
) -> CachePlan:
    """Choose the number of blocks.

    Args:
        specs: one a layer.
        dtype: of the cache.
        budget_bytes: what the cache may take.
        max_seq_len: the model's context.
        max_seqs: sequences that may run at once.
        block_size: tokens a block.
        context_tokens: tokens the cache must hold, of all sequences together. None for as many
            as the budget gives, up to ``max_seqs`` full contexts.

    Raises:
        MemoryPlanError: the budget does not give ``context_tokens``, or not a single block; the
            message says what it gives.
    """
    budget_bytes = max(0, budget_bytes)
    state_bytes = sum(spec.bytes_per_seq(dtype) for spec in specs) * max_seqs
    per_block = sum(spec.bytes_per_token(dtype) for spec in specs) * block_size
    wanted_tokens = max_seq_len * max_seqs if context_tokens is None else context_tokens
    wanted = -(-wanted_tokens // block_size)
    if state_bytes > budget_bytes:
        raise MemoryPlanError(
            f"The state of {max_seqs} sequences takes {_gib(state_bytes)}, but "
            f"{_gib(budget_bytes)} are left for it; load with fewer max_seqs or a smaller "
            "quantization."
        )
    fitting = (budget_bytes - state_bytes) // per_block if per_block else wanted
    if not fitting:
        raise MemoryPlanError(
            f"No KV cache fits: a block of {block_size} tokens takes {_gib(per_block)}, and "
            f"{_gib(budget_bytes)} are left beside the weights; load with a smaller quantization "
            "or free memory held by other programs."
        )
    if context_tokens is not None and fitting < wanted:
        wanted_bytes = wanted * per_block + state_bytes
        raise MemoryPlanError(
            f"A KV cache for {context_tokens} tokens takes {_gib(wanted_bytes)}, but "
            f"{_gib(budget_bytes)} are left for it; {fitting * block_size} tokens would fit: "
            f"pass pa_ctxt_len={fitting * block_size} or load with a smaller quantization."
        )
    num_blocks = max(1, min(wanted, fitting))
    return CachePlan(num_blocks, block_size, num_blocks * per_block + state_bytes)


def _gib(nbytes: int) -> str:
    return f"{nbytes / 2**30:.2f} GiB" if nbytes >= 2**30 / 10 else f"{nbytes / 2**20:.1f} MiB"
