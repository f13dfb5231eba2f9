"""Gemma 1.

Paper: Gemma Team, arXiv:2403.08295. Reference: ``transformers`` ``models/gemma``. What differs
from Llama: embeddings are scaled by the root of the width, norms multiply by one plus their
weight, the gate is a GELU, the head size is the config's own, and the head is usually tied.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from attrs import frozen
from torch import Tensor, nn
from torch.nn import functional as F

from tramontane.nn import (
    ACTIVATIONS,
    CausalLM,
    Decoder,
    DecoderConfig,
    GatedMLP,
    PreNormLayer,
    SelfAttention,
    attention_heads,
    read,
    read_rope_parameters,
)
from tramontane.protocols import ForwardBatch

HEAD_DIM = 256
MAX_POSITIONS = 8192


@frozen(kw_only=True)
class GemmaConfig(DecoderConfig):
    """``config.json`` of a Gemma."""

    max_position_embeddings: int = MAX_POSITIONS
    rms_norm_eps: float = 1e-6
    hidden_act: str = "gelu_pytorch_tanh"
    attention_bias: bool = False
    tie_word_embeddings: bool = True

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> GemmaConfig:
        act = data.get("hidden_activation") or data.get("hidden_act") or "gelu_pytorch_tanh"
        return read(
            cls,
            data,
            supported=SUPPORTED,
            # The first files say "gelu" and mean the approximation the model was trained with.
            hidden_act="gelu_pytorch_tanh" if act == "gelu" else act,
            rope_parameters=read_rope_parameters(data, default_max_positions=MAX_POSITIONS),
            **attention_heads({"head_dim": HEAD_DIM, **data}),
        )


SUPPORTED: Mapping[str, Any] = {
    "hidden_act": ACTIVATIONS,
    "hidden_activation": ACTIVATIONS,
    "partial_rotary_factor": (1.0,),
    "use_bidirectional_attention": (False,),
}
"""Values that all three Gemmas cover."""


class GemmaRMSNorm(nn.Module):
    """``x / rms(x) * (1 + weight)``, all of it in float32, then rounded to the type of ``x``.

    Args:
        size: length of the last axis.
        eps: added to the mean square.
    """

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size))
        self.eps = eps
        self._shape = (size,)
        self._gain: Tensor | None = None

    def bind_kernels(self, device: torch.device, dtype: torch.dtype) -> None:
        """Add the one for good."""
        self._gain = 1 + self.weight.float()

    def forward(self, x: Tensor) -> Tensor:
        gain = 1 + self.weight.float() if self._gain is None else self._gain
        return F.rms_norm(x.float(), self._shape, gain, self.eps).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self._shape[0]}, eps={self.eps}"


class GemmaDecoder(Decoder):
    """A decoder whose token embeddings are scaled by the root of the width."""

    def embed(self, batch: ForwardBatch) -> Tensor:
        h = super().embed(batch)
        if batch.embeddings is not None:
            return h
        # The factor is rounded to the type of the weights, as in training.
        return h * torch.tensor(h.shape[-1] ** 0.5, dtype=h.dtype).item()


class Gemma(CausalLM):
    """``GemmaForCausalLM``."""

    def __init__(self, config: GemmaConfig) -> None:
        layers = [
            PreNormLayer(
                SelfAttention(
                    config.hidden_size,
                    config.num_attention_heads,
                    config.num_key_value_heads,
                    config.head_dim,
                    bias=config.attention_bias,
                ),
                GatedMLP(config.hidden_size, config.intermediate_size, config.hidden_act),
                GemmaRMSNorm(config.hidden_size, config.rms_norm_eps),
                GemmaRMSNorm(config.hidden_size, config.rms_norm_eps),
            )
            for _ in range(config.num_hidden_layers)
        ]
        norm = GemmaRMSNorm(config.hidden_size, config.rms_norm_eps)
        super().__init__(config, GemmaDecoder(config, layers, norm))

    Config: ClassVar[type[Any]] = GemmaConfig
