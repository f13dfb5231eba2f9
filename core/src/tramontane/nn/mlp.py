"""Feed-forward blocks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from attrs import frozen
from torch import Tensor, nn
from torch.nn import functional as F

from tramontane.errors import ConfigError
from tramontane.kernels import dispatch
from tramontane.protocols import Split

Activation = Callable[[Tensor], Tensor]


def _relu_squared(x: Tensor) -> Tensor:
    return F.relu(x).square()


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


_tanh_gelu = partial(F.gelu, approximate="tanh")

ACTIVATIONS: dict[str, Activation] = {
    "silu": F.silu,
    "swish": F.silu,
    "gelu": F.gelu,
    "gelu_new": _tanh_gelu,
    "gelu_fast": _tanh_gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
    "quick_gelu": _quick_gelu,
    "relu": F.relu,
    "relu2": _relu_squared,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}
"""Activations by their Hugging Face name."""


def activation(name: str) -> Activation:
    """The activation that ``hidden_act`` calls ``name``.

    Raises:
        ConfigError: no such activation; lists those there are.
    """
    if name not in ACTIVATIONS:
        raise ConfigError(f"activation {name!r} is unknown; known are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


Gate = Callable[[Tensor, Tensor], Tensor]
"""What enters a gated MLP's last projection, of its gate and up branches [..., intermediate]."""


@frozen
class ActivatedGate:
    """``act(gate) * up`` (Shazeer, "GLU variants", arXiv:2002.05202)."""

    act: Activation

    def __call__(self, gate: Tensor, up: Tensor) -> Tensor:
        return self.act(gate) * up


@frozen
class BoundedGate:
    """``(up + 1) * gate * sigmoid(alpha * gate)``, the gate at most ``limit`` and up within it on
    both sides (gpt-oss, arXiv:2508.10925)."""

    limit: float
    alpha: float

    def __call__(self, gate: Tensor, up: Tensor) -> Tensor:
        gate = gate.clamp(max=self.limit)
        up = up.clamp(-self.limit, self.limit)
        return (up + 1) * gate * torch.sigmoid(self.alpha * gate)


class MLP(nn.Module):
    """``down(act(up(x)))``: the feed-forward block of Vaswani et al., arXiv:1706.03762.

    Args:
        hidden_size, intermediate_size: widths outside and inside.
        act: name of the activation.
        bias: whether the two projections have one.
    """

    def __init__(
        self, hidden_size: int, intermediate_size: int, act: str, bias: bool = False
    ) -> None:
        super().__init__()
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=bias)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=bias)
        self.act = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.down_proj(self.act(self.up_proj(x)))
        return h


class GatedMLP(nn.Module):
    """``down(act(gate(x)) * up(x))`` (Shazeer, "GLU variants", arXiv:2002.05202).

    Args:
        hidden_size, intermediate_size: widths outside and inside.
        act: name of the activation.
        bias: whether the three projections have one.
    """

    def __init__(
        self, hidden_size: int, intermediate_size: int, act: str = "silu", bias: bool = False
    ) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=bias)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=bias)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=bias)
        self.act = activation(act)
        self._whole: dispatch.Operator | None = None

    def bind_whole(self, device: torch.device, dtype: torch.dtype) -> None:
        """Choose what computes all of it in one call, if anything does."""
        self._whole = dispatch.bind_whole("gated_mlp", self, device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        if self._whole is not None:
            done: Tensor | None = self._whole(x)
            if done is not None:
                return done
        h: Tensor = self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))
        return h


FUSED_GATE_UP = Split(
    r"(.*\.mlp)\.gate_up_proj\.weight",
    (r"\1.gate_proj.weight", r"\1.up_proj.weight"),
    ("intermediate_size", "intermediate_size"),
)
"""Weight rule for checkpoints that store gate above up in one tensor."""
