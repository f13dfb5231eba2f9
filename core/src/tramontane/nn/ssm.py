"""State-space layers: Mamba-2.

Dao and Gu, "Transformers are SSMs" (arXiv:2405.21060). A head keeps a state ``S`` [P, N] of the
tokens so far and answers each with a reading of it::

    S_t = exp(dt_t * A) * S_{t-1} + dt_t * x_t ⊗ B_t        y_t = S_t C_t + D * x_t

One token is computed just so. Longer runs go in chunks (section 6 of the paper): within a chunk
every token looks at the others as in attention, with decays for scores, and only between chunks
is the state handed on. Shapes: ``b`` sequences, ``n`` tokens, ``H`` heads of ``P``, ``G`` groups of
heads that share ``B`` and ``C`` of ``N``.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tramontane.cache import RecurrentState, StateSlots
from tramontane.nn.mlp import activation
from tramontane.protocols.batch import ForwardBatch

CHUNK_SIZE = 64
"""Tokens computed as in attention. It changes the speed only: the ``mamba_chunk_size`` of a
checkpoint is meant for kernels of its own."""


def causal_conv(x: Tensor, state: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Depthwise convolution over tokens that looks back only.

    Args:
        x: [b, n, channels].
        state: [b, width - 1, channels], the inputs before ``x``; becomes those before what
            follows.
        weight: [channels, width].
        bias: [channels] or None.

    Returns:
        [b, n, channels].
    """
    length, width = x.shape[1], weight.shape[1]
    seen = torch.cat((state, x), 1)  # [b, width - 1 + n, channels]
    state.copy_(seen[:, length:])
    out = seen[:, :length] * weight[:, 0]
    for i in range(1, width):
        out.addcmul_(seen[:, i : i + length], weight[:, i])
    return out if bias is None else out.add_(bias)


def ssm_step(
    x: Tensor, decay: Tensor, b: Tensor, c: Tensor, before: Tensor, after: Tensor
) -> Tensor:
    """One token of each sequence.

    Args:
        x: [b, H, P], times dt.
        decay: [b, H], dt * A: the logarithm of what is kept of the state.
        b, c: [b, G, N].
        before: [b, H, P, N], the state.
        after: the same shape, for the state that follows; may be ``before``.

    Returns:
        [b, H, P].
    """
    rows = (*b.shape[:2], -1, b.shape[2])  # [b, G, H / G * P, N]
    state, column = after.view(rows), (*b.shape[:2], -1, 1)
    kept = decay.exp()[..., None].expand_as(x).reshape(column)
    torch.mul(before.view(rows), kept, out=state)
    state.addcmul_(x.reshape(column), b[:, :, None])
    return (state @ c[..., None]).view(x.shape)


def ssm_scan(
    x: Tensor,
    decay: Tensor,
    b: Tensor,
    c: Tensor,
    before: Tensor,
    after: Tensor,
    chunk_size: int = CHUNK_SIZE,
) -> Tensor:
    """Any number of tokens of each sequence: shapes of `ssm_step` with ``n`` after ``b``."""
    if x.shape[1] == 1:
        return ssm_step(x[:, 0], decay[:, 0], b[:, 0], c[:, 0], before, after)[:, None]
    after.copy_(before)
    parts = []
    for i in range(0, x.shape[1], chunk_size):
        at = slice(i, i + chunk_size)
        parts.append(ssm_chunk(x[:, at], decay[:, at], b[:, at], c[:, at], after))
    return torch.cat(parts, 1)


def ssm_chunk(x: Tensor, decay: Tensor, b: Tensor, c: Tensor, state: Tensor) -> Tensor:
    """One chunk of each sequence; its cost grows with the square of ``n``.

    Args:
        x: [b, n, H, P], times dt.
        decay: [b, n, H], dt * A.
        b, c: [b, n, G, N].
        state: [b, H, P, N], before the chunk; overwritten with that after it.

    Returns:
        [b, n, H, P].
    """
    num_seqs, length, num_heads, head_dim = x.shape
    num_groups = b.shape[2]
    # Differences of long sums are wanted, in which float32 would leave few digits.
    sums = decay.double().cumsum(1).transpose(1, 2)  # [b, H, n]
    scores = sums[..., None] - sums[..., None, :]  # from token s to token t: [b, H, n, n]
    ahead = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
    kept = scores.masked_fill(ahead, -torch.inf).float().exp()
    since_start, until_end = sums.float().exp(), kept[:, :, -1]  # [b, H, n]

    b, c = b.transpose(1, 2), c.transpose(1, 2)  # [b, G, n, N]
    x = x.transpose(1, 2)  # [b, H, n, P]

    def by_group(t: Tensor) -> Tensor:
        return torch.unflatten(t, 1, (num_groups, -1))  # [b, G, H / G, …]

    among = (c @ b.transpose(2, 3))[:, :, None] * by_group(kept)  # [b, G, H / G, n, n]
    y = (among @ by_group(x)).flatten(1, 2)  # [b, H, n, P]
    rows = by_group(state).flatten(2, 3)  # [b, G, H / G * P, N]
    before = (rows @ c.transpose(2, 3)).view(num_seqs, num_heads, head_dim, length)
    y = y + before.transpose(2, 3) * since_start[..., None]

    added = by_group(x * until_end[..., None]).transpose(3, 4).flatten(2, 3) @ b
    state.mul_(since_start[:, :, -1, None, None]).add_(added.view_as(state))
    return y.transpose(1, 2)


class CausalConv1d(nn.Module):
    """Weights of `causal_conv`, named and shaped as those of ``nn.Conv1d``."""

    def __init__(self, channels: int, width: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, width))
        self.bias = nn.Parameter(torch.empty(channels)) if bias else None

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.float()
        return causal_conv(x, state, self.weight[:, 0].float(), bias)

    def extra_repr(self) -> str:
        channels, _, width = self.weight.shape
        return f"{channels}, width={width}, bias={self.bias is not None}"


class GatedRMSNorm(nn.Module):
    """``rms_norm(x * silu(gate)) * weight``, the mean square taken within each of ``num_groups``
    equal parts of the last axis. Takes float32, gives the type of its weight."""

    def __init__(self, size: int, num_groups: int = 1, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.num_groups, self.eps = num_groups, eps

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        parts = torch.unflatten(x * F.silu(gate), -1, (self.num_groups, -1))
        normed = F.rms_norm(parts, parts.shape[-1:], eps=self.eps).flatten(-2)
        return normed.to(self.weight.dtype) * self.weight

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, num_groups={self.num_groups}, eps={self.eps}"


class Mamba2(nn.Module):
    """A Mamba-2 mixer, named as in Hugging Face checkpoints. Between the two projections it
    computes in float32.

    Args:
        hidden_size: width of the residual stream.
        num_heads, head_dim: ``H`` and ``P``.
        state_size: ``N``.
        num_groups: ``G``.
        conv_width: tokens that the convolution sees.
        act: activation after the convolution.
        eps: of the norm.
        bias: whether the two projections have one.
        conv_bias: whether the convolution has one.
        time_step_limit: bounds of dt.
    """

    def __init__(
        self,
        hidden_size: int,
        *,
        num_heads: int,
        head_dim: int,
        state_size: int,
        num_groups: int = 1,
        conv_width: int = 4,
        act: str = "silu",
        eps: float = 1e-6,
        bias: bool = False,
        conv_bias: bool = True,
        time_step_limit: tuple[float, ...] = (0.0, float("inf")),
    ) -> None:
        super().__init__()
        inner, shared = num_heads * head_dim, num_groups * state_size
        self.num_heads, self.num_groups = num_heads, num_groups
        self.act = activation(act)
        self.time_step_limit = time_step_limit
        self._widths = [inner, inner + 2 * shared, num_heads]
        self._conv_widths = [inner, shared, shared]
        self.in_proj = nn.Linear(hidden_size, sum(self._widths), bias=bias)
        self.conv1d = CausalConv1d(inner + 2 * shared, conv_width, conv_bias)
        self.dt_bias = nn.Parameter(torch.empty(num_heads))
        self.A_log = nn.Parameter(torch.empty(num_heads))
        self.D = nn.Parameter(torch.empty(num_heads))
        self.norm = GatedRMSNorm(inner, num_groups, eps)
        self.out_proj = nn.Linear(inner, hidden_size, bias=bias)

    FLOAT32 = ("dt_bias", "A_log", "D")

    @staticmethod
    def cache_spec(
        *, num_heads: int, head_dim: int, state_size: int, num_groups: int, conv_width: int
    ) -> RecurrentState:
        """What a layer of these sizes keeps of each sequence."""
        channels = num_heads * head_dim + 2 * num_groups * state_size
        return RecurrentState((conv_width - 1, channels), (num_heads, head_dim, state_size))

    def forward(self, x: Tensor, batch: ForwardBatch, cache: StateSlots) -> Tensor:
        """[T, hidden_size] to the same; the states in ``cache`` move on."""
        assert batch.state_slots is not None
        gate, mixed, dt = self.in_proj(x).float().split(self._widths, -1)
        dt = F.softplus(dt + self.dt_bias).clamp(*self.time_step_limit)  # [T, H]
        y = mixed.new_empty(x.shape[0], self._widths[0])
        for seqs, rows, length in _of_equal_length(batch):
            new = {i for i, seq in enumerate(seqs) if batch.kv_lens[seq] == length}
            shape = (len(seqs), length, -1)
            slots = batch.state_slots
            if len(seqs) < batch.num_seqs:
                slots = slots[seqs]
            part = self._mix(mixed[rows].view(shape), dt[rows].view(shape), cache, slots, new)
            y[rows] = part.flatten(0, 1)
        h: Tensor = self.out_proj(self.norm(y, gate))
        return h

    def _mix(
        self, mixed: Tensor, dt: Tensor, cache: StateSlots, slots: Tensor, new: set[int]
    ) -> Tensor:
        """Convolution and recurrence of sequences that add equally many tokens.

        Args:
            mixed: [b, n, channels], x, B and C before the convolution.
            dt: [b, n, H].
            cache: the layer's states.
            slots: [b, 2], theirs.
            new: which of the sequences begin.

        Returns:
            [b, n, H * P].
        """
        conv = cache.conv_before(slots, new)
        mixed = self.act(self.conv1d(mixed, conv))
        cache.set_conv(slots, conv)
        x, b, c = torch.split(mixed, self._conv_widths, -1)
        x = torch.unflatten(x, -1, (self.num_heads, -1))  # [b, n, H, P]
        b = torch.unflatten(b, -1, (self.num_groups, -1))  # [b, n, G, N]
        c = torch.unflatten(c, -1, (self.num_groups, -1))
        decay = dt * -self.A_log.exp()  # [b, n, H]
        scaled = x * dt[..., None]
        y = x * self.D[:, None]
        for at, before, after in cache.ssm_parts(slots, new):
            y[at] += ssm_scan(scaled[at], decay[at], b[at], c[at], before, after)
        return y.flatten(2)


def _of_equal_length(batch: ForwardBatch) -> Iterator[tuple[list[int], Tensor | slice, int]]:
    """Sequences that may be computed as one tensor, since they add equally many tokens: their
    indices, their rows of the packed axis, and that number."""
    groups: dict[int, list[int]] = {}
    starts = [0]
    for seq, length in enumerate(batch.query_lens):
        groups.setdefault(length, []).append(seq)
        starts.append(starts[-1] + length)
    for length, seqs in groups.items():
        if seqs[-1] - seqs[0] + 1 == len(seqs):  # neighbours: a view will do
            yield seqs, slice(starts[seqs[0]], starts[seqs[-1] + 1]), length
        else:
            rows = [range(starts[seq], starts[seq] + length) for seq in seqs]
            device = batch.token_ids.device
            yield seqs, torch.tensor([r for run in rows for r in run], device=device), length
