"""`ForwardBatch`: what the engine writes and every model reads.

Tokens of all sequences lie packed one after another, prompts and decode steps mixed, without
padding: ``T`` tokens, ``B`` sequences. A new need of some architecture becomes a field here, so
that ``forward(batch, caches)`` keeps its signature.
"""

from __future__ import annotations

from attrs import define
from torch import Tensor


@define(kw_only=True, eq=False)
class ForwardBatch:
    """One step's input. Filled by the scheduler; read-only for models.

    Attributes:
        token_ids: [T] int64.
        positions: [T] int64, position of each token in its own sequence.
        query_starts: [B + 1] int32, where each sequence's tokens begin in the packed axis.
        context_lens: [B] int32, tokens of each sequence in the cache *after* this step.
        slots: [T] int64, cache slot (block * block_size + offset) that receives each token.
        block_tables: [B, max_blocks] int32, blocks of each sequence in order; -1 past the end.
        logit_rows: [R] int64, rows of the packed axis whose logits are wanted.
        query_lens: the same as differences of ``query_starts``, as Python ints, so that a
            kernel can plan without waiting for the device.
        kv_lens: ``context_lens`` as Python ints.
        seq_lens: tokens of each sequence known so far, which for a chunk of a long prompt is more
            than ``kv_lens``; None when equal. Length-dependent RoPE goes by it, so that a prompt
            in chunks is computed as the whole would be.
        state_slots: [B, 2] int64, where each sequence's recurrent state is read and where the new
            one is written; two places, so that a step may be run again. Nothing is read for a
            sequence whose ``query_lens`` and ``kv_lens`` are equal: it begins, and its state is
            zero. None when no layer has a state.
        embeddings: [T, hidden] in place of the token embedding, where another modality supplied
            rows; None for pure text.
    """

    token_ids: Tensor
    positions: Tensor
    query_starts: Tensor
    context_lens: Tensor
    slots: Tensor
    block_tables: Tensor
    logit_rows: Tensor
    query_lens: list[int]
    kv_lens: list[int]
    seq_lens: list[int] | None = None
    state_slots: Tensor | None = None
    embeddings: Tensor | None = None

    @property
    def num_tokens(self) -> int:
        return int(self.token_ids.shape[0])

    @property
    def num_seqs(self) -> int:
        return len(self.query_lens)

    @property
    def is_decode(self) -> bool:
        """Whether every sequence contributes exactly one token."""
        return self.num_tokens == self.num_seqs
