"""GPTQ checkpoints (Frantar et al., arXiv:2210.17323), as AutoGPTQ and GPTQModel store them.

``qweight`` [in * bits / 32, out] holds each output's codes as one stream of bits down its column,
``qzeros`` [groups, out * bits / 32] the zero points as streams along rows, ``scales`` is
[groups, out]. ``g_idx`` [in] names the group of each input where columns were quantized in order of
importance (``desc_act``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tramontane.nn import GroupAffineWeight, column_order, pack_bits, unpack_bits
from tramontane.protocols import Checkpoint, ReadOnlyQuantizer
from tramontane_gptq.checkpoint import GroupedCheckpoint, setting


class GptqReader(ReadOnlyQuantizer):
    """The quantizer named ``gptq``."""

    name = "gptq"

    def read_checkpoint(self, checkpoint: Checkpoint, settings: Mapping[str, Any]) -> Checkpoint:
        """
        Args:
            checkpoint: as stored.
            settings: ``bits`` and ``checkpoint_format`` matter; groups show in the shapes.

        Raises:
            ConfigError: bits or a layout that are not covered.
            CheckpointError: parts are missing.
        """
        bits = setting(settings, "bits", (2, 3, 4, 8), None)
        layout = setting(settings, "checkpoint_format", ("gptq", "gptq_v2"), "gptq")
        return GptqCheckpoint(checkpoint, bits, zeros_less_one=layout == "gptq")


class GptqCheckpoint(GroupedCheckpoint):
    """
    Args:
        inner, bits: as for `GroupedCheckpoint`.
        zeros_less_one: whether zero points are stored less one, as the first layout has them.
    """

    def __init__(self, inner: Checkpoint, bits: int, *, zeros_less_one: bool) -> None:
        super().__init__(inner, bits, extra=("g_idx",))
        self._zeros_less_one = zeros_less_one

    def _weight(self, module: str) -> GroupAffineWeight:
        # A copy: each row's stream, which lies down a column, becomes neighbours.
        codes = self._part(module, "qweight").view(torch.int32).T.contiguous().view(torch.uint8)
        zeros = unpack_bits(self._part(module, "qzeros").contiguous().view(torch.uint8), self.bits)
        if self._zeros_less_one:
            zeros = zeros + 1 & (1 << self.bits) - 1
        scales = self._part(module, "scales")
        columns = codes.shape[-1] * 8 // self.bits
        order = None
        if self._has(module, "g_idx"):
            order = column_order(self._part(module, "g_idx"), columns, scales.shape[0])
        if order is not None:
            codes = pack_bits(unpack_bits(codes, self.bits)[:, order], self.bits)
        return self._affine(codes, scales, zeros, order)
