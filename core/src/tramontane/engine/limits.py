"""What an engine can take: context, cache, vocabulary."""

from __future__ import annotations

from attrs import frozen

from tramontane.engine.sequence import Sequence, Status
from tramontane.errors import ValidationError


@frozen
class Limits:
    """Refuses what can never run.

    Attributes:
        context_len: tokens of context the model was made for.
        num_blocks, block_size: of the KV cache.
        vocab_size: rows of the embedding; None where token ids are not looked at.
    """

    context_len: int
    num_blocks: int
    block_size: int
    vocab_size: int | None

    @property
    def cache_len(self) -> int:
        """Tokens that the cache holds."""
        return self.num_blocks * self.block_size

    @property
    def max_seq_len(self) -> int:
        """Tokens of the longest sequence served."""
        return min(self.context_len, self.cache_len)

    def check(self, seq: Sequence) -> None:
        """See that ``seq`` may be queued.

        Raises:
            ValidationError: it was queued before, its prompt is empty or too long, or holds
                tokens that the model does not know.
        """
        num_tokens = len(seq.prompt_ids)
        if seq.arrival >= 0 or seq.status is not Status.WAITING:
            raise ValidationError("This sequence has been submitted before; make a new one.")
        if not num_tokens:
            raise ValidationError("The prompt is empty; it must hold at least one token.")
        if num_tokens >= self.context_len:
            raise ValidationError(
                f"The prompt has {num_tokens} tokens, but the model's context ends at "
                f"{self.context_len} and the answer needs room too; shorten it, or set "
                "truncate_sequence."
            )
        if num_tokens >= self.cache_len:
            raise ValidationError(
                f"The prompt has {num_tokens} tokens, but the KV cache holds {self.cache_len} "
                f"({self.num_blocks} blocks of {self.block_size}); shorten it, or load the model "
                "with a larger cache (pa_ctxt_len)."
            )
        if self.vocab_size is not None:
            low, high = min(seq.prompt_ids), max(seq.prompt_ids)
            if low < 0 or high >= self.vocab_size:
                raise ValidationError(
                    f"The prompt holds token id {low if low < 0 else high}; the model knows "
                    f"0 to {self.vocab_size - 1}."
                )
