"""AWQ checkpoints (Lin et al., arXiv:2306.00978), in the layout called GEMM.

``qweight`` [in, out / 8] and ``qzeros`` [groups, out / 8] hold eight outputs a word, in the order
`NIBBLES` from the lowest bits up; ``scales`` is [groups, out].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tramontane.nn import GroupAffineWeight, pack_bits, unpack_bits
from tramontane.protocols import Checkpoint, ReadOnlyQuantizer
from tramontane_gptq.checkpoint import GroupedCheckpoint, setting

NIBBLES = (0, 2, 4, 6, 1, 3, 5, 7)
"""Output, of eight, that each four bits of a word belong to."""

_CHUNK = 1 << 12


class AwqReader(ReadOnlyQuantizer):
    """The quantizer named ``awq``."""

    name = "awq"

    def read_checkpoint(self, checkpoint: Checkpoint, settings: Mapping[str, Any]) -> Checkpoint:
        """
        Args:
            checkpoint: as stored.
            settings: ``bits`` and ``version`` matter; groups show in the shapes.

        Raises:
            ConfigError: bits or a layout that are not covered.
            CheckpointError: parts are missing.
        """
        bits = setting(settings, "bits", (4,), settings.get("w_bit"))
        version = settings.get("version", "gemm")
        lowered = {**settings, "version": version.lower() if isinstance(version, str) else version}
        setting(lowered, "version", ("gemm",), "gemm")
        return AwqCheckpoint(checkpoint, bits)


class AwqCheckpoint(GroupedCheckpoint):
    """See `GroupedCheckpoint`."""

    def _weight(self, module: str) -> GroupAffineWeight:
        words, scales = self._part(module, "qweight"), self._part(module, "scales")
        # Some outputs at a time, so that codes of a byte each never exist for all of them.
        parts = [
            pack_bits(_outputs(words[:, start : start + _CHUNK // 8]).T, self.bits)
            for start in range(0, words.shape[1], _CHUNK // 8)
        ]
        zeros = _outputs(self._part(module, "qzeros"))
        return self._affine(torch.cat(parts), scales, zeros)


def _outputs(words: Tensor) -> Tensor:
    """[N, out / 8] words to [N, out] uint8."""
    codes = unpack_bits(words.contiguous().view(torch.uint8), 4)
    eights = codes.view(codes.shape[0], -1, 8)
    back = torch.tensor([NIBBLES.index(output) for output in range(8)], device=words.device)
    return eights[..., back].view(codes.shape)
