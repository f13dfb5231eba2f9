"""Who runs a model's forwards."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from tramontane.protocols.batch import ForwardBatch


class Executor(Protocol):
    """Holds the model and its caches. Only the engine's thread calls it."""

    @property
    def num_blocks(self) -> int:
        """KV blocks available to the scheduler."""
        ...

    @property
    def recurrent(self) -> bool:
        """Whether some layer keeps a state of each sequence (`ForwardBatch.state_slots`). What a
        prefix left in it is gone once more tokens follow, so prefixes cannot be shared."""
        ...

    def forward(self, batch: ForwardBatch) -> Tensor:
        """One step: logits [R, vocab] in float32 for ``batch.logit_rows``."""
        ...

    def copy_blocks(self, pairs: list[tuple[int, int]]) -> None:
        """Copy whole blocks ``source → destination`` in every layer, before the next forward."""
        ...

    def close(self) -> None: ...
