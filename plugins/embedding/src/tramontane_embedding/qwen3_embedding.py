"""Qwen3-Embedding.

Paper: Zhang et al., arXiv:2506.05176. Reference: ``transformers`` ``models/qwen3``
(``Qwen3Model``). What differs from Qwen3: there is no head. Attention is causal, so that the last
token, the end of text that the tokenizer appends, has seen everything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from tramontane.nn import Encoder, backbone
from tramontane.protocols import CacheSpec

BACKBONE = "Qwen3"


class Qwen3EmbeddingConfig:
    """``config.json`` of a Qwen3-Embedding, which is that of a Qwen3."""

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Any:
        """Read ``config.json``.

        Raises:
            ConfigError: a value that is not covered.
            MissingPluginError: Qwen3 is not installed.
        """
        return backbone(BACKBONE).Config.from_dict(data)


class Qwen3Embedding(Encoder):
    """``Qwen3Model``."""

    def __init__(self, config: Any) -> None:
        super().__init__(backbone(BACKBONE)(config))

    @staticmethod
    def cache_specs(config: Any) -> Sequence[CacheSpec]:
        specs: Sequence[CacheSpec] = backbone(BACKBONE).cache_specs(config)
        return specs

    Config: ClassVar[type[Any]] = Qwen3EmbeddingConfig
