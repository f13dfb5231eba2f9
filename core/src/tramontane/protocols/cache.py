"""What a layer asks of the cache, and what it is handed.

A model only *declares* its needs (`cache_specs`); the engine allocates them and passes each layer
its own cache as an argument.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch


@runtime_checkable
class LayerCache(Protocol):
    """One layer's storage. The concrete class follows from the layer's `CacheSpec`."""

    @property
    def nbytes(self) -> int: ...


@runtime_checkable
class CacheSpec(Protocol):
    """One layer's need."""

    def bytes_per_token(self, dtype: torch.dtype) -> int:
        """Bytes one more token of context takes in this layer (0 for recurrent state)."""
        ...

    def bytes_per_seq(self, dtype: torch.dtype) -> int:
        """Bytes one more sequence takes whatever its length (0 for attention)."""
        ...

    def allocate(
        self,
        *,
        num_blocks: int,
        block_size: int,
        num_seqs: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> LayerCache:
        """Zero-initialized storage for ``num_blocks`` blocks and ``num_seqs`` sequences."""
        ...
