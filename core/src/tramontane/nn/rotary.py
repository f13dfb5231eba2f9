"""Rotary position embedding (RoFormer, arXiv:2104.09864), half-split layout of Hugging Face.

The tables of a step are computed once, at the top of a model's forward, and handed to each layer::

    rope = self.rotary(batch, h.dtype)
    for layer, cache in zip(self.layers, caches):
        h = layer(h, rope, batch, cache)
"""

from __future__ import annotations

from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn

from tramontane.nn.rope import RopeParameters, inverse_frequencies
from tramontane.protocols.batch import ForwardBatch


@frozen(eq=False)
class Rope:
    """cos and sin of one step's tokens.

    Attributes:
        cos: [T, 1, rotary_dim].
        sin: [T, 1, rotary_dim], its first half negated, so that rotating is two multiplications.
    """

    cos: Tensor
    sin: Tensor

    def rotate(self, x: Tensor) -> Tensor:
        """Rotate the first ``rotary_dim`` numbers of every head of ``x`` [T, heads, head_dim]."""
        size = self.cos.shape[-1]
        if size == x.shape[-1]:
            return torch.addcmul(x * self.cos, x.roll(size // 2, -1), self.sin)
        turned, kept = x[..., :size], x[..., size:]
        turned = torch.addcmul(turned * self.cos, turned.roll(size // 2, -1), self.sin)
        return torch.cat((turned, kept), -1)


class AdjacentRope(Rope):
    """The same rotation for heads whose pairs lie side by side: (0, 1), (2, 3) and so on.

    Rotated heads keep the order of halves. Scores do not notice, since it is that of queries and
    keys alike.
    """

    def rotate(self, x: Tensor) -> Tensor:
        size = self.cos.shape[-1]
        pairs = x[..., :size].reshape(*x.shape[:-1], size // 2, 2)
        halves = pairs.transpose(-1, -2).flatten(-2)
        return super().rotate(torch.cat((halves, x[..., size:]), -1))


class Rotary(nn.Module):
    """Makes the `Rope` of a step.

    Frequencies are no buffers: they are derived on the first step, so that building a model on
    the meta device leaves nothing to fill in.

    Where the scaling depends on the length (dynamic, longrope), each sequence has the frequencies
    of *its own* length, ``batch.seq_lens``, so neighbours in the batch and chunked prefill change
    nothing. Keys already in the cache keep the frequencies of the step that wrote them; the engine
    computes a sequence anew when it grows past `tramontane.nn.rope.rope_switch`.

    Args:
        rope: frequencies and scaling.
        head_dim: size of one head.
        layout: how the numbers of a head are paired: `Rope`, first half with second, or
            `AdjacentRope`.
    """

    def __init__(self, rope: RopeParameters, head_dim: int, layout: type[Rope] = Rope) -> None:
        super().__init__()
        self.parameters_of_rope = rope
        self.head_dim = head_dim
        self.layout = layout
        self._tables: dict[tuple[torch.device, int], tuple[Tensor, float]] = {}

    def forward(self, batch: ForwardBatch, dtype: torch.dtype) -> Rope:
        """cos and sin of ``batch.positions`` in ``dtype``; computed in float32."""
        positions = batch.positions
        rope = self.parameters_of_rope
        if rope.depends_on_length:
            lengths = [rope.at_length(n) for n in batch.seq_lens or batch.kv_lens]
        else:
            lengths = [0]
        factor: float | Tensor
        if len(set(lengths)) == 1:
            steps, factor = self._frequencies(positions.device, lengths[0])
        else:
            rows = [self._frequencies(positions.device, n) for n in lengths]
            counts = torch.tensor(batch.query_lens, device=positions.device)
            steps = torch.cat([r for r, _ in rows]).repeat_interleave(counts, 0)
            factor = steps.new_tensor([f for _, f in rows]).repeat_interleave(counts)[:, None]
        angles = positions[:, None] * steps  # [T, rotary_dim / 2]
        cos, sin = angles.cos(), angles.sin()
        cos, sin = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
        if isinstance(factor, Tensor) or factor != 1.0:
            cos, sin = cos * factor, sin * factor
        return self.layout(cos.to(dtype)[:, None], sin.to(dtype)[:, None])

    def _frequencies(self, device: torch.device, length: int) -> tuple[Tensor, float]:
        """Inverse frequencies [1, rotary_dim / 2] on ``device``, and the factor on cos and sin."""
        found = self._tables.get((device, length))
        if found is None:
            inv_freq, factor = inverse_frequencies(self.parameters_of_rope, self.head_dim, length)
            found = (inv_freq[None].to(device), factor)
            # Dynamic scaling has a table for every length past the limit; those are not kept.
            if length <= self.parameters_of_rope.max_position_embeddings:
                self._tables[device, length] = found
        return found

    def extra_repr(self) -> str:
        rope = self.parameters_of_rope
        return f"{rope.rope_type}, theta={rope.rope_theta}, head_dim={self.head_dim}"


def rotary_from_config(config: Any) -> Rotary:
    """The rotary of a config with ``rope_parameters`` and ``head_dim``."""
    return Rotary(config.rope_parameters, config.head_dim)
