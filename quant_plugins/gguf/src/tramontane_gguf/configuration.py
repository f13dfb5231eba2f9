"""The ``config.json`` that a file amounts to, whatever its architecture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tramontane_gguf.families import Family
from tramontane_gguf.latent import DEEPSEEK, latent_settings
from tramontane_gguf.mamba import GRANITE, granite_settings
from tramontane_gguf.metadata import Factors, Metadata, config_of


def configuration(
    meta: Metadata, family: Family, *, names: Sequence[str], vocab_size: int, factors: Factors
) -> dict[str, Any]:
    """As `tramontane_gguf.metadata.config_of`, completed by what is the architecture's own.

    Raises:
        CheckpointError: a required key is absent or of the wrong kind.
    """
    config = config_of(meta, family, names=names, vocab_size=vocab_size, factors=factors)
    prefix = f"{family.name}."
    if family.architecture == GRANITE:
        config |= granite_settings(meta, prefix, names, num_layers=config["num_hidden_layers"])
    elif family.architecture == DEEPSEEK:
        config |= latent_settings(meta, prefix, names)
    return config
