"""Memory is planned before it is taken: weights first, then as much cache as was asked for.

The settings are those of paged attention in the mistralrs SDK. Where several are given, the number
of tokens counts before the share of memory, and that before the number of bytes. Where none
is, there is room for ``max_seqs`` sequences of ``planned_seq_len`` tokens (`auto_map_params`), and
for one sequence of the model's full length if memory allows.

``planned_seq_len`` plans memory and limits nothing: a sequence may grow to the model's
``max_position_embeddings`` as long as the whole cache can hold it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from attrs import frozen

from tramontane.errors import MemoryPlanError
from tramontane.loading.device import Room, memory_of
from tramontane.loading.dtype import Inventory
from tramontane.protocols import CacheSpec

SMALLER = {"BF16": 16.0, "Q8_0": 8.5, "Q4K": 4.5}
"""Formats an error may propose, with bits a weight."""


@frozen(kw_only=True)
class CacheRequest:
    """What the user says about the KV cache; values in range.

    Attributes:
        context_len: tokens of context in all (``pa_ctxt_len``).
        cache_fraction: share of the device's memory for weights and cache together
            (``pa_gpu_mem_usage``), in (0, 1].
        cache_bytes: bytes of cache (``pa_gpu_mem``).
        block_size: tokens a block (``pa_blk_size``).
        dtype: of K and V; None for that of activations.
        max_seqs: sequences that run at once.
        planned_seq_len, planned_batch_size: ``max_seq_len`` and ``max_batch_size`` of
            `TextAutoMapParams`; a cache smaller than that is refused.
    """

    context_len: int | None = None
    cache_fraction: float | None = None
    cache_bytes: int | None = None
    block_size: int = 32
    dtype: torch.dtype | None = None
    max_seqs: int = 16
    planned_seq_len: int = 4096
    planned_batch_size: int = 1


@frozen(kw_only=True)
class MemoryPlan:
    """What will be taken.

    Attributes:
        weight_bytes: weights in memory.
        cache_bytes: all layers' cache.
        num_blocks, block_size: the KV cache, in blocks of so many tokens.
        max_seq_len: longest sequence that model and cache allow.
        cache_dtype: of K and V.
    """

    weight_bytes: int
    cache_bytes: int
    num_blocks: int
    block_size: int
    max_seq_len: int
    cache_dtype: torch.dtype


@frozen(kw_only=True)
class Part:
    """What one device holds of a model.

    Attributes:
        device: which.
        room: its memory.
        weight_bytes: weights on it.
        specs: needs of the layers on it.
    """

    device: torch.device
    room: Room
    weight_bytes: int
    specs: Sequence[CacheSpec]


def working_bytes(room: Room, largest_bytes: int) -> int:
    """Memory of a device left for activations, logits, and one tensor in two dtypes while it is
    converted."""
    return max(room.total // 50, min(512 << 20, room.total // 16), largest_bytes)


def plan_memory(
    *,
    inventory: Inventory,
    specs: Sequence[CacheSpec],
    max_positions: int,
    request: CacheRequest,
    dtype: torch.dtype,
    device: torch.device,
    room: Room | None = None,
    left: int | None = None,
    parts: Sequence[Part] | None = None,
) -> MemoryPlan:
    """Decide how large the cache will be.

    Args:
        inventory: what the checkpoint holds.
        specs: the layers' needs.
        max_positions: the model's longest sequence.
        request: what the user asked for.
        dtype: of activations and plain weights.
        room: memory of the device; None looks.
        left: what the runner's budget leaves for the cache before another model has to go; None
            where there is no budget.
        parts: what each device holds; None where ``device`` holds everything. As many blocks are
            allocated on each, so the one with the least room for them decides.

    Raises:
        MemoryPlanError: weights and the requested cache do not fit; says what would.
    """
    weights = inventory.bytes_as(dtype)
    cache_dtype = request.dtype or dtype
    token_bytes = sum(spec.bytes_per_token(cache_dtype) for spec in specs)
    states = sum(spec.bytes_per_seq(cache_dtype) for spec in specs) * request.max_seqs
    if parts is None:
        room = room or memory_of(device)
        parts = [Part(device=device, room=room, weight_bytes=weights, specs=specs)]
    shares = [_Share.of(part, inventory.largest_bytes, request, cache_dtype) for part in parts]
    for share in shares:
        if share.free <= 0:
            where = share.part.device, share.part.room
            raise _weights_do_not_fit(inventory, dtype, *where, states, request.max_seqs)

    block_bytes = max(token_bytes * request.block_size, 1)

    def blocks_for(tokens: int, count: int = 1) -> int:
        return -(-tokens // request.block_size) * count

    planned = min(request.planned_seq_len, max_positions)
    wanted = max(blocks_for(planned, request.max_seqs), blocks_for(max_positions))
    if request.context_len is not None:
        blocks = blocks_for(request.context_len)
    elif request.cache_fraction is not None:
        fast = [share for share in shares if share.part.device.type != "cpu"]
        blocks = min(share.blocks_within(request.cache_fraction) for share in fast or shares)
    elif request.cache_bytes is not None:
        blocks = request.cache_bytes // block_bytes
    else:
        least = blocks_for(planned, request.planned_batch_size)
        possible = min(share.blocks_unasked for share in shares)
        if left is not None:  # the budget is every model's
            possible = min(possible, left // 2 // block_bytes)
        blocks = max(min(wanted, possible), least)
    if not token_bytes:  # blocks that take nothing: as many as are of use, not as fit
        blocks = min(blocks, wanted)
    for share in shares:
        if blocks < 1 or blocks * share.block_bytes > share.free:
            raise _cache_does_not_fit(request, max(blocks, 1), share, planned)
    return MemoryPlan(
        weight_bytes=weights,
        cache_bytes=blocks * token_bytes * request.block_size + states,
        num_blocks=blocks,
        block_size=request.block_size,
        max_seq_len=min(max_positions, blocks * request.block_size),
        cache_dtype=cache_dtype,
    )


@frozen
class _Share:
    """What a device has left for blocks.

    Attributes:
        part: what it holds.
        free: bytes left beside weights, states and working memory.
        block_bytes: of a block in all of its layers.
    """

    part: Part
    free: int
    block_bytes: int

    @classmethod
    def of(cls, part: Part, largest: int, request: CacheRequest, dtype: torch.dtype) -> _Share:
        states = sum(spec.bytes_per_seq(dtype) for spec in part.specs) * request.max_seqs
        working = working_bytes(part.room, largest)
        free = part.room.available - part.weight_bytes - working - states
        token_bytes = sum(spec.bytes_per_token(dtype) for spec in part.specs)
        return cls(part, free, max(token_bytes * request.block_size, 1))

    @property
    def blocks_unasked(self) -> int:
        """The CPU's memory is everybody's: half of what is left suffices."""
        share = self.free // 2 if self.part.device.type == "cpu" else self.free * 9 // 10
        return share // self.block_bytes

    def blocks_within(self, fraction: float) -> int:
        """The fraction covers what others hold of the device, weights and working memory."""
        total = self.part.room.total
        return max(int(total * fraction) - (total - self.free), 0) // self.block_bytes


def smaller_formats(inventory: Inventory, dtype: torch.dtype, available: int) -> str:
    """Formats in which the weights would take less than ``available`` bytes, for an error; empty
    where there are none."""
    count = sum(inventory.elements.values())
    kept = inventory.packed_bytes + inventory.other_bytes
    sizes = {name: int(count * bits / 8) + kept for name, bits in SMALLER.items()}
    fitting = [
        f"{name} ({_size(size)})"
        for name, size in sizes.items()
        if size < min(available, inventory.bytes_as(dtype))
    ]
    return f"weights as {', '.join(fitting)} (in_situ_quant, dtype)" if fitting else ""


def _weights_do_not_fit(
    inventory: Inventory,
    dtype: torch.dtype,
    device: torch.device,
    room: Room,
    states: int,
    max_seqs: int,
) -> MemoryPlanError:
    weights = inventory.bytes_as(dtype)
    count = sum(inventory.elements.values())
    kept = inventory.packed_bytes + inventory.other_bytes
    sizes = {name: int(count * bits / 8) + kept for name, bits in SMALLER.items()}
    smaller = [f"{name} ({_size(size)})" for name, size in sizes.items() if size < weights]
    fitting = [f"{name} ({_size(size)})" for name, size in sizes.items() if size < room.available]
    if fitting and count:
        advice = f"these formats would fit: {', '.join(fitting)}"
    elif smaller and count:
        advice = f"even smaller formats do not fit: {', '.join(smaller)}; take a smaller model"
    else:
        advice = "take a file of a smaller quantization, or a smaller model"
    kept_states = ""
    if states:
        kept_states = f" and {_size(states)} for the states of {max_seqs} sequences (max_seqs)"
    return MemoryPlanError(
        f"the weights need {_size(weights)} in {_name(dtype)}, beside working memory{kept_states}; "
        f"{device} has {_size(room.available)} free of "
        f"{_size(room.total)}: {advice} (in_situ_quant, dtype), or free memory"
    )


def _cache_does_not_fit(
    request: CacheRequest,
    blocks: int,
    share: _Share,
    planned: int,
) -> MemoryPlanError:
    part, room = share.part, share.part.room
    possible = share.free // share.block_bytes * request.block_size
    sequences = possible // max(planned, 1)
    advice = [f"a cache of {possible} tokens (pa_ctxt_len={possible})"] if possible else []
    if sequences:
        advice.append(f"{sequences} sequences of {planned} tokens (max_seqs={sequences})")
    elif possible:
        advice.append(
            f"one sequence of {possible} tokens (auto_map_params=TextAutoMapParams("
            f"max_seq_len={possible}))"
        )
    advice.append("weights in a smaller format (in_situ_quant='Q8_0' or 'Q4K', or a GGUF file)")
    return MemoryPlanError(
        f"the cache needs {_size(blocks * share.block_bytes)} for {blocks * request.block_size} "
        f"tokens and the weights {_size(part.weight_bytes)}; {part.device} has "
        f"{_size(room.available)} free of "
        f"{_size(room.total)}. What would fit: {'; '.join(advice)}"
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _size(nbytes: int) -> str:
    """Bytes for people: ``1.5 GiB``."""
    size = float(nbytes)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
