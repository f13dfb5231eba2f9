"""bitsandbytes as a quantizer that reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tramontane.errors import ConfigError
from tramontane.protocols import Checkpoint, ReadOnlyQuantizer
from tramontane_bitsandbytes.checkpoint import BitsAndBytesCheckpoint
from tramontane_bitsandbytes.state import KINDS


class BitsAndBytesReader(ReadOnlyQuantizer):
    """The quantizer named ``bitsandbytes``."""

    name = "bitsandbytes"

    def read_checkpoint(self, checkpoint: Checkpoint, settings: Mapping[str, Any]) -> Checkpoint:
        """
        Args:
            checkpoint: as stored.
            settings: how the weights were packed, which each of them also says. What they say of
                the arithmetic (the type it is done in, columns that are held back as outliers)
                does not matter here: inputs are not quantized.

        Raises:
            ConfigError: a setting that is not covered, by key.
            CheckpointError: parts are missing.
        """
        for key in ("load_in_4bit", "load_in_8bit", "llm_int8_has_fp16_weight"):
            if settings.get(key, False) not in (True, False):
                raise ConfigError(f"quantization_config.{key} is {settings[key]!r}; true or false")
        if settings.get("llm_int8_has_fp16_weight"):
            raise ConfigError(
                "quantization_config.llm_int8_has_fp16_weight is True: the weights are stored "
                "plain, to be packed anew. Remove quantization_config to load them so"
            )
        if bool(settings.get("load_in_4bit")) == bool(settings.get("load_in_8bit")):
            raise ConfigError(
                "one of quantization_config.load_in_4bit and load_in_8bit must be true, not "
                f"{settings.get('load_in_4bit')!r} and {settings.get('load_in_8bit')!r}"
            )
        kind = settings.get("bnb_4bit_quant_type", "fp4")
        if settings.get("load_in_4bit") and kind not in KINDS:
            raise ConfigError(
                f"quantization_config.bnb_4bit_quant_type is {kind!r}; covered are "
                f"{', '.join(map(repr, KINDS))}"
            )
        return BitsAndBytesCheckpoint(checkpoint)
