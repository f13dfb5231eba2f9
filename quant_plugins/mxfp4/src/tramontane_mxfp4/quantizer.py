"""The ``mxfp4`` weight format as a quantizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import prod
from typing import Any

import torch
from torch import Tensor

from tramontane.errors import ConfigError
from tramontane.protocols import Checkpoint, PackedWeight, joined_parts
from tramontane_mxfp4.checkpoint import Mxfp4Checkpoint
from tramontane_mxfp4.weight import BLOCK, MAGNITUDES, SCALE_BIAS, Mxfp4Weight

# Halfway between neighbouring magnitudes.
_MIDDLES = tuple((a + b) / 2 for a, b in pairwise(MAGNITUDES))
_TYPE = "mxfp4"
# The exponent of the largest magnitude, 6.
_LARGEST_EXPONENT = 2
# Numbers encoded at a time.
_CHUNK = 1 << 22


class Mxfp4Quantizer:
    """Packs as the MX specification says (section 6.3) and reads Hugging Face checkpoints."""

    name = _TYPE

    def quantize(
        self, weight: Tensor, type_name: str = _TYPE, *, importance: Tensor | None = None
    ) -> Mxfp4Weight:
        """Pack ``weight`` [..., in] on its device: the largest number of a block gives the shared
        exponent, and each number becomes the nearest there is, the even one of two.

        Args:
            weight: any float dtype.
            type_name: ``"mxfp4"``, in any case.
            importance: ignored; the specification leaves nothing to weigh.

        Raises:
            ConfigError: an unknown type, rows that are no multiples of 32, or numbers that are
                not finite.
        """
        if self.packed_bytes(weight.shape, type_name) is None:
            raise ConfigError(
                f"a weight of shape {list(weight.shape)} cannot be {_TYPE}: it must be a matrix "
                f"or a stack of them, and rows multiples of {BLOCK}"
            )
        flat = weight.detach().reshape(-1, BLOCK)
        codes = torch.empty(flat.shape[0], BLOCK // 2, dtype=torch.uint8, device=flat.device)
        scales = torch.empty(flat.shape[0], dtype=torch.uint8, device=flat.device)
        for start in range(0, flat.shape[0], _CHUNK // BLOCK):
            part = slice(start, start + _CHUNK // BLOCK)
            codes[part], scales[part] = _encoded(flat[part].float())
        blocks = (*weight.shape[:-1], weight.shape[-1] // BLOCK)
        return Mxfp4Weight(codes.view(*blocks, BLOCK // 2), scales.view(blocks))

    def packed_bytes(self, shape: Sequence[int], type_name: str = _TYPE) -> int | None:
        """Bytes that a weight of ``shape`` takes; None where its rows are no whole blocks.

        Raises:
            ConfigError: an unknown type.
        """
        if type_name.lower() != _TYPE:
            raise ConfigError(f"{type_name!r} is no type of {_TYPE}; its only one is {_TYPE!r}")
        if len(shape) < 2 or shape[-1] % BLOCK:
            return None
        return prod(shape) // BLOCK * (BLOCK // 2 + 1)

    def serialize(self, weight: PackedWeight) -> dict[str, Any]:
        """``blocks`` [..., in / 32, 16] and ``scales`` [..., in / 32], both uint8: the parts of a
        Hugging Face checkpoint."""
        if not isinstance(weight, Mxfp4Weight):
            raise ConfigError(f"{weight.format} is not {_TYPE}")
        return {"blocks": weight.codes.contiguous(), "scales": weight.scales.contiguous()}

    def deserialize(self, parts: Mapping[str, Any]) -> Mxfp4Weight:
        """See `tramontane.protocols.Quantizer.deserialize`."""
        with joined_parts(_TYPE):
            return Mxfp4Weight(parts["blocks"], parts["scales"])

    def read_checkpoint(self, checkpoint: Checkpoint, settings: Mapping[str, Any]) -> Checkpoint:
        """``X_blocks`` and ``X_scales`` come as one packed weight ``X``, everything else as it is.

        ``settings`` need not be read: which modules are packed shows in their names, and the
        format has no variants.

        Raises:
            CheckpointError: one of the two parts of a weight is missing.
        """
        return Mxfp4Checkpoint(checkpoint)


def _encoded(values: Tensor) -> tuple[Tensor, Tensor]:
    """[N, 32] float32 to codes [N, 16] and scales [N]."""
    if not bool(values.isfinite().all()):
        raise ConfigError(f"a weight with numbers that are not finite cannot be {_TYPE}")
    largest = values.abs().amax(-1)
    # frexp has mantissas from 0.5, one power below floor(log2).
    exponent = largest.frexp().exponent - 1 - _LARGEST_EXPONENT
    scales = torch.where(largest > 0, exponent + SCALE_BIAS, 0).clamp(0, 254)
    # In float64, where no power of two of the range overflows or vanishes.
    scaled = values.double() * torch.exp2((SCALE_BIAS - scales).double())[:, None]
    size = scaled.abs()
    middles = torch.tensor(_MIDDLES, dtype=torch.float64, device=values.device)
    codes = torch.bucketize(size, middles)  # a middle itself goes down …
    tied = (codes < len(_MIDDLES)) & (size == middles[codes.clamp(max=len(_MIDDLES) - 1)])
    codes = codes + (tied & (codes % 2 == 1))  # … unless the code above is the even one
    codes = (codes | ((scaled < 0) & (codes > 0)).long() << 3).to(torch.uint8)
    return codes[:, 0::2] | codes[:, 1::2] << 4, scales.to(torch.uint8)
