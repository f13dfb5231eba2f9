"""Multi-head latent attention (MLA) with a paged cache of latents."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tramontane.kernels import dispatch
from tramontane.kernels.latent import latent_attention
from tramontane.nn.norm import RMSNorm
from tramontane.nn.rope import RopeParameters, mscale
from tramontane.nn.rotary import Rope
from tramontane.protocols.batch import ForwardBatch

_NORM_EPS = 1e-6  # of the latents, whatever the other norms of a model have


class HeadExpansion(nn.Module):
    """``kv_b_proj``: a latent to the keys and values of all heads.

    Its weight is always a plain tensor: queries are multiplied by the transpose of its key half,
    for which formats that pack along the latent have no product.
    """

    def __init__(self, kv_lora_rank: int, num_heads: int, head_size: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.weight = nn.Parameter(torch.empty(num_heads * head_size, kv_lora_rank))

    def heads(self) -> Tensor:
        """[num_heads, nope_dim + v_head_dim, kv_lora_rank]: keys above values, head by head."""
        return self.weight.view(self.num_heads, -1, self.weight.shape[-1])


class LatentSelfAttention(nn.Module):
    """Causal self-attention whose keys and values are products of a cached latent
    (DeepSeek-V2, arXiv:2405.04434, section 2.1).

    Holds ``q_proj``, or ``q_a_proj``, ``q_a_layernorm`` and ``q_b_proj`` where queries have a
    latent too; ``kv_a_proj_with_mqa``, ``kv_a_layernorm``, ``kv_b_proj`` and ``o_proj``.

    Args:
        hidden_size: width of the residual stream.
        num_heads: heads; each has keys and values of its own.
        q_lora_rank: width of the queries' latent, or None.
        kv_lora_rank: width of the latent of keys and values.
        nope_dim, rope_dim: parts of a query or key without and with position.
        v_head_dim: size of one value head.
        rope: its scaling decides how scores are scaled.
        bias: whether the projections of and to the residual stream have one; ``q_proj`` never has.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        q_lora_rank: int | None,
        kv_lora_rank: int,
        nope_dim: int,
        rope_dim: int,
        v_head_dim: int,
        rope: RopeParameters,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.num_heads, self.kv_lora_rank = num_heads, kv_lora_rank
        self.nope_dim, self.rope_dim, self.v_head_dim = nope_dim, rope_dim, v_head_dim
        head_dim = nope_dim + rope_dim
        self.q_lora_rank = q_lora_rank
        if q_lora_rank is None:
            self.q_proj = nn.Linear(hidden_size, num_heads * head_dim, bias=False)
        else:
            self.q_a_proj = nn.Linear(hidden_size, q_lora_rank, bias=bias)
            self.q_a_layernorm = RMSNorm(q_lora_rank, _NORM_EPS)
            self.q_b_proj = nn.Linear(q_lora_rank, num_heads * head_dim, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(hidden_size, kv_lora_rank + rope_dim, bias=bias)
        self.kv_a_layernorm = RMSNorm(kv_lora_rank, _NORM_EPS)
        self.kv_b_proj = HeadExpansion(kv_lora_rank, num_heads, nope_dim + v_head_dim)
        self.o_proj = nn.Linear(num_heads * v_head_dim, hidden_size, bias=bias)
        self.scale = head_dim**-0.5 * _score_factor(rope)
        self._attend: dispatch.Operator = latent_attention

    def bind_kernels(self, device: torch.device, dtype: torch.dtype) -> None:
        """Choose the attention kernel for good."""
        self._attend = dispatch.bind(
            "latent_attention",
            device,
            dtype=dtype,
            num_heads=self.num_heads,
            kv_lora_rank=self.kv_lora_rank,
            nope_dim=self.nope_dim,
            rope_dim=self.rope_dim,
            v_head_dim=self.v_head_dim,
        )

    def forward(self, x: Tensor, rope: Rope, batch: ForwardBatch, cache: Any) -> Tensor:
        """Attend from ``x``, having put its latents into ``cache``.

        Args:
            x: [T, hidden_size].
            rope: this step's rotation, of ``rope_dim`` numbers.
            batch: the step.
            cache: the layer's `tramontane.cache.PagedLatent`.

        Returns:
            [T, hidden_size].
        """
        if self.q_lora_rank is None:
            q = self.q_proj(x)
        else:
            q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))
        q = q.unflatten(-1, (-1, self.nope_dim + self.rope_dim))  # [T, num_heads, head_dim]
        q_nope, q_rope = q.split((self.nope_dim, self.rope_dim), -1)
        latent, k_rope = self.kv_a_proj_with_mqa(x).split((self.kv_lora_rank, self.rope_dim), -1)
        k_rope = rope.rotate(k_rope[:, None])[:, 0]  # [T, rope_dim], shared by the heads
        cache.write(self.kv_a_layernorm(latent), k_rope, batch.slots)
        h = self._attend(
            q_nope, rope.rotate(q_rope), self.kv_b_proj.heads(), cache, batch, scale=self.scale
        )  # [T, num_heads, v_head_dim]
        out: Tensor = self.o_proj(h.flatten(1))
        return out


def _score_factor(rope: RopeParameters) -> float:
    """Yarn's temperature on whole scores, where the file asks for it by ``mscale_all_dim``; the
    one on cos and sin reaches only the part that is rotated (arXiv:2309.00071, section 3.4)."""
    if rope.rope_type == "default" or not rope.mscale_all_dim:
        return 1.0
    return mscale(rope.factor, rope.mscale_all_dim) ** 2
