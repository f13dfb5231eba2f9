"""Mixture of experts: each token goes through the few experts its router picks.

Sparsely gated experts: Shazeer et al., arXiv:1701.06538; top-k of a softmax as in Mixtral,
arXiv:2401.04088.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from attrs import frozen
from torch import Tensor, nn
from torch.nn import functional as F

from tramontane.kernels import dispatch
from tramontane.nn.mlp import ActivatedGate, Gate, activation

Router = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Logits [T, num_experts] to weights and expert indices, both [T, top_k]."""


class ExpertLinear(nn.Module):
    """One linear for each expert, stacked in a parameter [num_experts, out, in].

    Called with tokens and the index of their expert. The loader may replace it by
    `PackedExpertLinear` or `NarrowExpertLinear`.
    """

    def __init__(
        self, num_experts: int, in_features: int, out_features: int, bias: bool = False
    ) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.empty(num_experts, out_features, in_features))
        self.bias = nn.Parameter(torch.empty(num_experts, out_features)) if bias else None

    def forward(self, x: Tensor, index: int) -> Tensor:
        """``x`` [n, in] through expert ``index``: [n, out]."""
        bias = None if self.bias is None else self.bias[index]
        return F.linear(x, self.weight[index], bias)

    def extra_repr(self) -> str:
        return f"{self.num_experts} x ({self.in_features}, {self.out_features})"


class GatedExperts(nn.Module):
    """Experts that are gated MLPs. Tokens are sorted by expert, so that each expert multiplies
    once a step.

    Args:
        num_experts: how many there are.
        hidden_size, intermediate_size: widths outside and inside.
        act: name of the gate's activation, or what combines gate and up in its place.
        bias: whether the three projections have one.
    """

    def __init__(
        self,
        num_experts: int,
        hidden_size: int,
        intermediate_size: int,
        act: str | Gate = "silu",
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.gate_proj = ExpertLinear(num_experts, hidden_size, intermediate_size, bias)
        self.up_proj = ExpertLinear(num_experts, hidden_size, intermediate_size, bias)
        self.down_proj = ExpertLinear(num_experts, intermediate_size, hidden_size, bias)
        self.combine: Gate = ActivatedGate(activation(act)) if isinstance(act, str) else act
        self._whole: dispatch.Operator | None = None

    def bind_whole(self, device: torch.device, dtype: torch.dtype) -> None:
        """Choose what computes all of it in one call, if anything does."""
        self._whole = dispatch.bind_whole("gated_experts", self, device, dtype)

    def forward(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """Each token's sum over its experts, weighted.

        Args:
            x: [T, hidden_size].
            weights, chosen: of each token's experts, [T, top_k].

        Returns:
            [T, hidden_size].
        """
        if self._whole is not None:
            done: Tensor | None = self._whole(x, weights, chosen)
            if done is not None:
                return done
        order = chosen.flatten().argsort(stable=True)  # pairs of token and expert, by expert
        tokens = order // chosen.shape[-1]
        counts = chosen.flatten().bincount(minlength=self.num_experts).tolist()
        parts = torch.split(x[tokens], counts)
        through = [self._expert(p, e) for e, p in enumerate(parts) if p.shape[0]]
        h = torch.cat(through) * weights.flatten()[order, None].to(x.dtype)  # [T * top_k, hidden]
        return torch.zeros_like(x).index_add_(0, tokens, h)

    def _expert(self, x: Tensor, index: int) -> Tensor:
        """``x`` [n, hidden_size] through expert ``index``: [n, hidden_size]."""
        h = self.combine(self.gate_proj(x, index), self.up_proj(x, index))
        out: Tensor = self.down_proj(h, index)
        return out


@frozen
class SoftmaxTopK:
    """A `Router`: the ``top_k`` largest of a float32 softmax, scaled to sum to one when
    ``renormalize``."""

    top_k: int
    renormalize: bool = True

    def __call__(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        weights, experts = logits.softmax(-1, dtype=torch.float32).topk(self.top_k, dim=-1)
        if self.renormalize:
            weights = weights / weights.sum(-1, keepdim=True)
        return weights, experts


class MoE(nn.Module):
    """Router and experts.

    Args:
        hidden_size: width of the residual stream.
        experts: the experts.
        num_experts: how many there are.
        route: logits to weights and indices, e.g. ``SoftmaxTopK(2)``.
        gate_bias: whether the router's linear has a bias.
    """

    EXACT = frozenset({"gate"})

    def __init__(
        self,
        hidden_size: int,
        experts: GatedExperts,
        num_experts: int,
        route: Router,
        gate_bias: bool = False,
    ) -> None:
        super().__init__()
        self.gate: nn.Module = nn.Linear(hidden_size, num_experts, bias=gate_bias)
        self.experts = experts
        self.num_experts = num_experts
        self.route = route

    def forward(self, x: Tensor) -> Tensor:
        """[T, hidden_size] to the same."""
        weights, chosen = self.route(self.gate(x))  # [T, top_k]
        out: Tensor = self.experts(x, weights, chosen)
        return out
