"""What layers declare that keep nothing beyond a step: those of encoders, which see a text once."""

from __future__ import annotations

import torch
from attrs import frozen
from torch import Tensor


class TransientKV:
    """Keys and values of one layer in one step, packed as they were computed.

    Attributes:
        k: [T, num_kv_heads, head_dim].
        v: [T, num_kv_heads, v_head_dim].
    """

    k: Tensor
    v: Tensor

    @property
    def nbytes(self) -> int:
        return 0

    def write(self, k: Tensor, v: Tensor, slots: Tensor) -> None:
        """Hold this step's tokens in place of the last one's; ``slots`` has no meaning here."""
        self.k, self.v = k, v


@frozen
class TransientAttention:
    """Attention among the tokens of one step."""

    def bytes_per_token(self, dtype: torch.dtype) -> int:
        return 0

    def bytes_per_seq(self, dtype: torch.dtype) -> int:
        return 0

    def allocate(
        self,
        *,
        num_blocks: int,
        block_size: int,
        num_seqs: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> TransientKV:
        return TransientKV()
