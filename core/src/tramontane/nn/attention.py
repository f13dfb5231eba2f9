"""Self-attention with a paged cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tramontane.kernels import dispatch
from tramontane.kernels.reference import OPERATORS
from tramontane.nn.rotary import Rope
from tramontane.protocols.batch import ForwardBatch


class SelfAttention(nn.Module):
    """Causal self-attention: multi-head, grouped-query (arXiv:2305.13245) or multi-query.

    Holds ``q_proj``, ``k_proj``, ``v_proj`` and ``o_proj``, named as in Hugging Face checkpoints.

    Args:
        hidden_size: width of the residual stream.
        num_heads, num_kv_heads: query heads, and the key/value heads they share.
        head_dim: size of one query or key head.
        v_head_dim: size of one value head; ``head_dim`` when None.
        bias: whether q, k and v projections have one.
        o_bias: whether the output projection has one; ``bias`` when None.
        scale: factor on the scores; ``head_dim ** -0.5`` when None.
        window: a query at position p sees positions above ``p - window``; all when None.
        softcap: bound of the scores, or None.
        sinks: whether each head has a learned logit that takes attention away (gpt-oss).
        q_norm, k_norm: modules applied to [T, heads, head_dim] before rotation, or None.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        v_head_dim: int | None = None,
        bias: bool = False,
        o_bias: bool | None = None,
        scale: float | None = None,
        window: int | None = None,
        softcap: float | None = None,
        sinks: bool = False,
        q_norm: nn.Module | None = None,
        k_norm: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.v_head_dim = head_dim if v_head_dim is None else v_head_dim
        self.num_heads, self.num_kv_heads = num_heads, num_kv_heads
        o_bias = bias if o_bias is None else o_bias
        self.q_proj = nn.Linear(hidden_size, num_heads * head_dim, bias=bias)
        self.k_proj = nn.Linear(hidden_size, num_kv_heads * head_dim, bias=bias)
        self.v_proj = nn.Linear(hidden_size, num_kv_heads * self.v_head_dim, bias=bias)
        self.o_proj = nn.Linear(num_heads * self.v_head_dim, hidden_size, bias=o_bias)
        self.q_norm, self.k_norm = q_norm, k_norm
        self.sinks = nn.Parameter(torch.empty(num_heads)) if sinks else None
        self.scale = head_dim**-0.5 if scale is None else scale
        self.window, self.softcap = window, softcap
        self._whole: dispatch.Operator | None = None
        self._use("paged_attention")

    def see_both_ways(self) -> None:
        """Let every token see those after it too, as encoders do. The cache is then a
        `tramontane.cache.TransientKV`, and ``window`` counts in both directions."""
        self._use("bidirectional_attention")

    def _use(self, operator: str) -> None:
        self.operator = operator
        self._attend: dispatch.Operator = OPERATORS[operator]

    def bind_kernels(self, device: torch.device, dtype: torch.dtype) -> None:
        """Choose the attention kernel for good."""
        self._attend = dispatch.bind(
            self.operator,
            device,
            dtype=dtype,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            v_head_dim=self.v_head_dim,
            window=self.window,
            softcap=self.softcap,
            sinks=self.sinks is not None,
        )

    def bind_whole(self, device: torch.device, dtype: torch.dtype) -> None:
        """Choose what computes all of it in one call, if anything does."""
        self._whole = dispatch.bind_whole("self_attention", self, device, dtype)

    def forward(self, x: Tensor, rope: Rope | None, batch: ForwardBatch, cache: Any) -> Tensor:
        """Attend from ``x``, having put its keys and values into ``cache``.

        Args:
            x: [T, hidden_size].
            rope: this step's rotation, or None for a layer without positions.
            batch: the step.
            cache: the layer's `tramontane.cache.PagedKV`.

        Returns:
            [T, hidden_size].
        """
        if self._whole is not None:
            done: Tensor | None = self._whole(x, rope, batch, cache)
            if done is not None:
                return done
        q = self.q_proj(x).unflatten(-1, (-1, self.head_dim))  # [T, num_heads, head_dim]
        k = self.k_proj(x).unflatten(-1, (-1, self.head_dim))  # [T, num_kv_heads, head_dim]
        v = self.v_proj(x).unflatten(-1, (-1, self.v_head_dim))  # [T, num_kv_heads, v_head_dim]
        if self.q_norm is not None:
            q = self.q_norm(q)
        if self.k_norm is not None:
            k = self.k_norm(k)
        if rope is not None:
            q, k = rope.rotate(q), rope.rotate(k)
        cache.write(k, v, batch.slots)
        h = self._attend(
            q,
            cache,
            batch,
            scale=self.scale,
            window=self.window,
            softcap=self.softcap,
            sinks=self.sinks,
        )  # [T, num_heads, v_head_dim]
        out: Tensor = self.o_proj(h.flatten(1))
        return out
