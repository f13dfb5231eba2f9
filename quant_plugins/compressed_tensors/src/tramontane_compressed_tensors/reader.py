"""compressed-tensors as a quantizer that reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tramontane.protocols import Checkpoint, ReadOnlyQuantizer
from tramontane_compressed_tensors.checkpoint import CompressedCheckpoint
from tramontane_compressed_tensors.scheme import Schemes


class CompressedTensorsReader(ReadOnlyQuantizer):
    """The quantizer named ``compressed-tensors``."""

    name = "compressed-tensors"

    def read_checkpoint(self, checkpoint: Checkpoint, settings: Mapping[str, Any]) -> Checkpoint:
        """
        Args:
            checkpoint: as stored.
            settings: what they say of weights counts. Activations and the KV cache are not
                quantized here, which is the more exact of what the schemes allow.

        Raises:
            ConfigError: a setting that is not covered, by key.
            CheckpointError: parts are missing, or belong to no scheme.
            MissingPluginError: there are 8-bit floats, and nothing installed holds them.
        """
        return CompressedCheckpoint(checkpoint, Schemes.read(settings))
