"""Recurrent state: what a layer keeps of a sequence whatever its length.

It stands beside the KV cache and differs in one thing: a token overwrites it, so the state before
that token is gone. Every sequence therefore has two places, one that holds its state and one that
the next step writes. They change roles once the step counts; until then it may be run again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
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
        self._singly = device.type == "cpu"
        self.conv = zeros((num_slots, *conv), STATE_DTYPE, device)
        self.ssm = zeros((num_slots, *ssm), STATE_DTYPE, device)

    @property
    def nbytes(self) -> int:
        """Bytes reserved. On a CPU, pages that were never written take no memory."""
        return self.conv.nbytes + self.ssm.nbytes

    def conv_before(self, slots: Tensor, new: Collection[int]) -> Tensor:
        """A copy of the convolution's states, [B, width, channels].

        Args:
            slots: [B, 2] int64, `ForwardBatch.state_slots` of the sequences.
            new: which of them begin, from zero: what lies in their slots is somebody else's.
        """
        conv = self.conv[slots[:, 0]]
        if new:
            conv[list(new)] = 0.0
        return conv

    def set_conv(self, slots: Tensor, conv: Tensor) -> None:
        """Write the states after this step, [B, width, channels]."""
        self.conv.index_copy_(0, slots[:, 1], conv)

    def ssm_parts(
        self, slots: Tensor, new: Collection[int]
    ) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Walk over the recurrence's states, to be computed from place to place.

        On a CPU that is one sequence after the other, since one state about fills the processor's
        caches and a copy of all would go to memory and back; elsewhere all at once.

        Args:
            slots, new: as in `conv_before`.

        Yields:
            Which sequences; their states [b, num_heads, head_dim, state_size]; and where to write
            the states after this step, of the same shape and perhaps the same tensor.
        """
        if self._singly:
            for i, (read, write) in enumerate(slots.tolist()):
                after = self.ssm[write : write + 1]
                before = after.zero_() if i in new else self.ssm[read : read + 1]
                yield slice(i, i + 1), before, after
        else:
            states = self.ssm[slots[:, 0]]
            if new:
                states[list(new)] = 0.0
            yield slice(None), states, states
            self.ssm.index_copy_(0, slots[:, 1], states)
