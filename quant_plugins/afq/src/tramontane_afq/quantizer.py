"""The ``afq`` weight format as a quantizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from tramontane.errors import ConfigError
from tramontane.nn import GroupAffineWeight, pack_bits
from tramontane.protocols import Checkpoint, PackedWeight, check_group_size, joined_parts
from tramontane_afq.checkpoint import MlxCheckpoint
from tramontane_afq.words import affine_from_words, words_of

GROUP = 64
"""Columns that share scale and bias where nobody says otherwise."""

TYPES = {f"afq{bits}": bits for bits in (2, 3, 4, 6, 8)}

# Rows are encoded so many numbers at a time.
_CHUNK = 1 << 22
_SMALLEST_SCALE = 1e-7


class AfqQuantizer:
    """Packs as ``mlx.core.quantize`` does and reads MLX checkpoints."""

    name = "afq"

    def quantize(
        self, weight: Tensor, type_name: str, *, importance: Tensor | None = None
    ) -> GroupAffineWeight:
        """Pack ``weight`` [..., in] on its device. Of a group's two ends the one farther from zero
        is met exactly, and zero is one of the codes' values.

        Args:
            weight: any float dtype; scales and biases keep it.
            type_name: ``"afq2"`` to ``"afq8"``, in any case.
            importance: ignored; groups are fitted by their ends.

        Raises:
            ConfigError: an unknown type, rows that are no multiples of 64, or numbers that are
                not finite.
        """
        if self.packed_bytes(weight.shape, type_name) is None:
            raise ConfigError(
                f"a weight of shape {list(weight.shape)} cannot be {type_name}: rows must be "
                f"multiples of {GROUP}"
            )
        bits = TYPES[type_name.lower()]
        flat = weight.detach().reshape(-1, weight.shape[-1])
        rows = max(1, _CHUNK // flat.shape[-1])
        parts = [_encoded(part, bits) for part in torch.split(flat, rows)]
        codes, scales, biases = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        lead = weight.shape[:-1]
        return GroupAffineWeight(
            codes.view(*lead, -1), scales.view(*lead, -1), biases.view(*lead, -1), bits=bits
        )

    def packed_bytes(self, shape: Sequence[int], type_name: str) -> int | None:
        """Bytes that a BF16 weight of ``shape`` takes; None where groups do not divide its rows.

        Raises:
            ConfigError: an unknown type.
        """
        bits = TYPES.get(type_name.lower())
        if bits is None:
            raise ConfigError(f"{type_name!r} is no type of afq; there are {', '.join(TYPES)}")
        if len(shape) < 2 or shape[-1] % GROUP:
            return None
        return prod(shape) * bits // 8 + prod(shape) // GROUP * 4

    def serialize(self, weight: PackedWeight) -> dict[str, Any]:
        """``weight`` [..., in * bits / 32] uint32, ``scales``, ``biases``, ``bits`` and
        ``group_size``."""
        if not isinstance(weight, GroupAffineWeight) or weight.order is not None:
            raise ConfigError(f"{weight!r} is not afq")
        return {
            "weight": words_of(weight),
            "scales": weight.scales,
            "biases": weight.biases,
            "bits": weight.bits,
            "group_size": weight.group_size,
        }

    def deserialize(self, parts: Mapping[str, Any]) -> GroupAffineWeight:
        """See `tramontane.protocols.Quantizer.deserialize`."""
        with joined_parts("AFQ"):
            weight = affine_from_words(
                parts["weight"], parts["scales"], parts["biases"], bits=int(parts["bits"])
            )
            check_group_size(weight.group_size, parts)
            return weight

    def read_checkpoint(self, checkpoint: Checkpoint, settings: Mapping[str, Any]) -> Checkpoint:
        """``X.weight`` with ``X.scales`` and ``X.biases`` beside it comes as one packed weight.

        Args:
            checkpoint: as stored.
            settings: ``bits``, ``group_size``, and by module name other ones.

        Raises:
            ConfigError: bits or a mode that are not covered.
            CheckpointError: parts are missing.
        """
        return MlxCheckpoint(checkpoint, settings)


def _encoded(weight: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """[rows, in] to a stream of codes, scales and biases."""
    groups = weight.float().view(weight.shape[0], -1, GROUP)
    if not bool(groups.isfinite().all()):
        raise ConfigError("a weight with numbers that are not finite cannot be afq")
    top = (1 << bits) - 1
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    low_is_farther = low.abs() > high.abs()
    scale = ((high - low) / top).clamp(min=_SMALLEST_SCALE)
    scale = torch.where(low_is_farther, scale, -scale)
    edge = torch.where(low_is_farther, low, high)
    zero = (edge / scale).round()
    meets = zero != 0
    scale = torch.where(meets, edge / zero, scale)
    bias = torch.where(meets, edge, 0.0)
    # Codes are chosen for scales as they are kept.
    scale, bias = scale.to(weight.dtype), bias.to(weight.dtype)
    codes = ((groups - bias.float()) / scale.float()).round().clamp(0, top)
    return pack_bits(codes.flatten(-2).to(torch.uint8), bits), scale.squeeze(-1), bias.squeeze(-1)
