"""EmbeddingGemma.

Paper: Schechter Vera et al., arXiv:2509.20354. Reference: ``transformers`` ``models/gemma3``
(``Gemma3TextModel`` with ``use_bidirectional_attention``). What differs from Gemma 3: there is no
head, every token sees those after it as well, and half of ``sliding_window`` lies on either side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from tramontane.cache import TransientAttention
from tramontane.errors import ConfigError
from tramontane.nn import Encoder, backbone, check_type
from tramontane.protocols import CacheSpec, Drop, WeightRule

BACKBONE = "Gemma3Text"
DEFAULT_WINDOW = 4096


class EmbeddingGemmaConfig:
    """``config.json`` of an EmbeddingGemma; what it gives is the config of a Gemma 3."""

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Any:
        """Read ``config.json``.

        Raises:
            ConfigError: a value that is not covered.
            MissingPluginError: Gemma 3 is not installed.
        """
        if data.get("use_bidirectional_attention") is not True:
            raise ConfigError(
                f"use_bidirectional_attention is {data.get('use_bidirectional_attention')!r}; "
                f"EmbeddingGemma supports True. The checkpoint may be a language model (see "
                f"Which.Plain)"
            )
        window = data.get("sliding_window")
        window = DEFAULT_WINDOW if window is None else check_type("sliding_window", window, "int")
        # Positions up to half of it away are seen; a window counts its own position as well.
        as_gemma = {"use_bidirectional_attention": False, "sliding_window": window // 2 + 1}
        return backbone(BACKBONE).Config.from_dict({**data, **as_gemma})


class EmbeddingGemma(Encoder):
    """``Gemma3TextModel`` that sees both ways."""

    def __init__(self, config: Any) -> None:
        super().__init__(backbone(BACKBONE)(config), bidirectional=True)

    @staticmethod
    def cache_specs(config: Any) -> Sequence[CacheSpec]:
        return [TransientAttention()] * config.num_hidden_layers

    Config: ClassVar[type[Any]] = EmbeddingGemmaConfig
    # The linear layers after pooling, which GGUF files hold beside the model's own tensors.
    WEIGHTS: ClassVar[Sequence[WeightRule]] = (Drop(r"dense_[23]\.weight"), *Encoder.WEIGHTS)
    GGUF: ClassVar[Mapping[str, Any]] = {
        "model_type": "gemma3_text",
        "norm_plus_one": True,
        "roles": {
            "ffn_norm": "pre_feedforward_layernorm",
            "post_attention_norm": "post_attention_layernorm",
            "post_ffw_norm": "post_feedforward_layernorm",
        },
        "fields": {
            "query_pre_attn_scalar": "attention.key_length",
            "rope_local_base_freq": "rope.freq_base_swa",
        },
        "hidden_act": "gelu_pytorch_tanh",
        "constants": {"use_bidirectional_attention": True},
    }
