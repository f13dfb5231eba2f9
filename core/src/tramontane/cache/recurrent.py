"""Recurrent state: what a layer keeps of a sequence whatever its length.

It stands beside the KV cache and differs in one thing: a token overwrites it, so the state before
that token is gone. Every sequence therefore has two places, one that holds its state and one that
the next step writes. They change roles once the step counts; until then it may be run again.
"""

from __future__ import annotations

from math import prod

import torch
from attrs import field, frozen, validators
from torch import Tensor

from tramontane.cache.paged import zeros

STATE_DTYPE = torch.float32
"""Whatever the model computes in: a state sums over all tokens, and roundings would add up."""

_sizes = validators.deep_iterable(validators.ge(1))


@frozen
class RecurrentState:
    """A state-space layer (Mamba-2): one state of its convolution, one of its recurrence.

    Attributes:
        conv: earlier inputs that the convolution looks back at, and its channels.
        ssm: shape of the recurrence's state: heads, head size, state size.
    """

    conv: tuple[int, int] = field(validator=_sizes)
    ssm: tuple[int, int, int] = field(validator=_sizes)

    def bytes_per_token(self, dtype: torch.dtype) -> int:
        return 0

    def bytes_per_seq(self, dtype: torch.dtype) -> int:
        return 2 * (prod(self.conv) + prod(self.ssm)) * STATE_DTYPE.itemsize

    def allocate(
        self,
        *,
        num_blocks: int,
        block_size: int,
        num_seqs: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> StateSlots:
        return StateSlots(2 * num_seqs, self.conv, self.ssm, device=device)


class StateSlots:
    """One layer's states. Which sequence reads and writes which slot is the engine's business
    (`ForwardBatch.state_slots`).

    Attributes:
        conv: [num_slots, width, channels].
        ssm: [num_slots, num_heads, head_dim, state_size].
    """

    def __init__(
        self,
        num_slots: int,
        conv: tuple[int, int],
        ssm: tuple[int, int, int],
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        device = torch.device(device)
        self.conv = zeros((num_slots, *conv), STATE_DTYPE, device)
        self.ssm = zeros((num_slots, *ssm), STATE_DTYPE, device)

    @property
    def nbytes(self) -> int:
        """Bytes reserved. On a CPU, pages that were never written take no memory."""
        return self.conv.nbytes + self.ssm.nbytes

    def load(self, slots: Tensor, new: list[int]) -> tuple[Tensor, Tensor]:
        """Copies of both states, which the caller may overwrite.

        Args:
            slots: [B] int64.
            new: indices into ``slots`` of sequences that begin, from zero: what lies in their
                slots is somebody else's.
        """
        conv, ssm = self.conv[slots], self.ssm[slots]
        if new:
            conv[new], ssm[new] = 0.0, 0.0
        return conv, ssm

    def store(self, slots: Tensor, conv: Tensor, ssm: Tensor) -> None:
        """Write both states; ``slots`` [B] int64, all different."""
        self.conv.index_copy_(0, slots, conv)
        self.ssm.index_copy_(0, slots, ssm)
