"""Mixture of experts: each token goes through the few experts its router picks.

Sparsely gated experts: Shazeer et al., arXiv:1701.06538; top-k of a softmax as in Mixtral,
arXiv:2401.04088.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tramontane.nn.mlp import activation

Router = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Logits [T, num_experts] to weights and expert indices, both [T, top_k]."""


class ExpertLinear(nn.Module):
    """One linear for each expert, stacked in a parameter [num_experts, out, in].

    The loader may replace it by `PackedExpertLinear`, which has the same ``expert``.
    """

    def __init__(
        self, num_experts: int, in_features: int, out_features: int, bias: bool = False
    ) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.empty(num_experts, out_features, in_features))
        self.bias = nn.Parameter(torch.empty(num_experts, out_features)) if bias else None

    def expert(self, x: Tensor, index: int) -> Tensor:
        """``x`` [n, in] through expert ``index``: [n, out]."""
        bias = None if self.bias is None else self.bias[index]
        return F.linear(x, self.weight[index], bias)

    def extra_repr(self) -> str:
        return f"{self.num_experts} x ({self.in_features}, {self.out_features})"


class GatedExperts(nn.Module):
    """Experts that are gated MLPs: ``down(act(gate(x)) * up(x))``.

    Args:
        num_experts: how many there are.
        hidden_size, intermediate_size: widths outside and inside.
        act: name of the activation.
        bias: whether the three projections have one.
    """

    def __init__(
        self,
        num_experts: int,
        hidden_size: int,
        intermediate_size: int,
        act: str = "silu",
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.gate_proj = ExpertLinear(num_experts, hidden_size, intermediate_size, bias)
        self.up_proj = ExpertLinear(num_experts, hidden_size, intermediate_size, bias)
        self.down_proj = ExpertLinear(num_experts, intermediate_size, hidden_size, bias)
        self.act = activation(act)

    def combine(self, gate: Tensor, up: Tensor) -> Tensor:
        """What enters the last projection, of both branches [n, intermediate_size]."""
        return self.act(gate) * up

    def expert(self, x: Tensor, index: int) -> Tensor:
        """``x`` [n, hidden_size] through expert ``index``: [n, hidden_size]."""
        h = self.combine(self.gate_proj.expert(x, index), self.up_proj.expert(x, index))
        return self.down_proj.expert(h, index)


def softmax_top_k(top_k: int, renormalize: bool = True) -> Router:
    """Router weights: the ``top_k`` largest of a float32 softmax, scaled to sum to one when
    ``renormalize``."""

    def route(logits: Tensor) -> tuple[Tensor, Tensor]:
        weights, experts = logits.softmax(-1, dtype=torch.float32).topk(top_k, dim=-1)
        if renormalize:
            weights = weights / weights.sum(-1, keepdim=True)
        return weights, experts

    return route


class MoE(nn.Module):
    """Router and experts. Tokens are sorted by expert, so each expert multiplies once a step.

    Args:
        hidden_size: width of the residual stream.
        experts: module with ``expert(x, index)``, e.g. `GatedExperts`.
        num_experts: how many there are.
        route: logits to weights and indices, e.g. ``softmax_top_k(2)``.
        gate_bias: whether the router's linear has a bias.
    """

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
        top_k = chosen.shape[-1]
        order = chosen.flatten().argsort(stable=True)  # pairs of token and expert, by expert
        tokens = order // top_k
        counts = chosen.flatten().bincount(minlength=self.num_experts).tolist()
        parts = torch.split(x[tokens], counts)
        done = [self.experts.expert(p, e) for e, p in enumerate(parts) if p.shape[0]]
        h = torch.cat(done) * weights.flatten()[order, None].to(x.dtype)  # [T * top_k, hidden]
        return torch.zeros_like(x).index_add_(0, tokens, h)
