"""The ``hqq`` weight format as a quantizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from tramontane.errors import ConfigError
from tramontane.nn import PackedStack
from tramontane.protocols import Checkpoint, PackedWeight, check_group_size, joined_parts
from tramontane_hqq.checkpoint import HqqCheckpoint
from tramontane_hqq.weight import HqqWeight, pack

GROUP = 64
"""Numbers of a group."""

TYPES = {"hqq4": 4, "hqq8": 8}

STEPS = 10
"""Most rounds of the optimization of zeros."""

_NORM = 0.7
_BETA, _KAPPA = 10.0, 1.01
_LARGEST_SCALE = 2e4
_SMALLEST_RANGE = 1e-4
# Numbers optimized at a time.
_CHUNK = 1 << 21


class HqqQuantizer:
    """Packs as Badri and Shaji describe (https://mobiusml.github.io/hqq_blog, "Half-Quadratic
    Quantization"), groups across rows as mistral.rs has them, and reads Hugging Face checkpoints.
    """

    name = "hqq"

    def quantize(
        self, weight: Tensor, type_name: str, *, importance: Tensor | None = None
    ) -> PackedWeight:
        """Pack ``weight`` [out, in], or each matrix of a stack, on its device.

        Args:
            weight: any float dtype.
            type_name: ``"hqq4"`` or ``"hqq8"``, in any case.
            importance: ignored; errors count alike, large ones less than their square.

        Raises:
            ConfigError: an unknown type, a size that is no multiple of 64, or numbers that are
                not finite.
        """
        if self.packed_bytes(weight.shape, type_name) is None:
            raise ConfigError(
                f"a weight of shape {list(weight.shape)} cannot be {type_name}: its size must be a "
                f"multiple of {GROUP}, and its groups must fill whole bytes"
            )
        bits = TYPES[type_name.lower()]
        if weight.dim() == 3:
            return PackedStack([self._matrix(expert, bits) for expert in weight])
        return self._matrix(weight, bits)

    def _matrix(self, weight: Tensor, bits: int) -> HqqWeight:
        groups = weight.detach().reshape(GROUP, -1)
        parts = [_encoded(part.float(), bits) for part in torch.split(groups, _CHUNK // GROUP, 1)]
        codes, scales, zeros = (torch.cat(tensors, 1) for tensors in zip(*parts, strict=True))
        return HqqWeight(codes, scales, zeros, weight.shape, bits=bits, axis=0)

    def packed_bytes(self, shape: Sequence[int], type_name: str) -> int | None:
        """Bytes that a weight of ``shape`` takes; None where groups do not divide it.

        Raises:
            ConfigError: an unknown type.
        """
        bits = TYPES.get(type_name.lower())
        if bits is None:
            raise ConfigError(f"{type_name!r} is no type of hqq; there are {', '.join(TYPES)}")
        if len(shape) not in (2, 3) or not prod(shape) or shape[-1] * shape[-2] % GROUP:
            return None
        return prod(shape) * bits // 8 + prod(shape) // GROUP * 8

    def serialize(self, weight: PackedWeight) -> dict[str, Any]:
        """``weight`` (packed codes), ``scales``, ``zeros``, ``shape``, ``bits``, ``group_size``,
        ``axis``, ``optimization_steps``, ``round_zeros`` and ``channel_wise``."""
        if not isinstance(weight, HqqWeight) or weight.shape != weight.whole_shape:
            raise ConfigError(f"{weight!r} is no whole HQQ weight")
        return {
            "weight": weight.codes,
            "scales": weight.scales.float(),
            "zeros": weight.zeros.float(),
            "shape": weight.shape,
            "bits": weight.bits,
            "group_size": weight.group_size,
            "axis": weight.axis,
            "optimization_steps": STEPS,
            "round_zeros": False,
            "channel_wise": True,
        }

    def deserialize(self, parts: Mapping[str, Any]) -> HqqWeight:
        """See `tramontane.protocols.Quantizer.deserialize`."""
        with joined_parts("HQQ"):
            weight = HqqWeight(
                parts["weight"],
                parts["scales"],
                parts["zeros"],
                tuple(int(size) for size in parts["shape"]),
                bits=int(parts["bits"]),
                axis=int(parts["axis"]),
            )
            check_group_size(weight.group_size, parts)
            return weight

    def read_checkpoint(self, checkpoint: Checkpoint, settings: Mapping[str, Any]) -> Checkpoint:
        """``X.W_q`` with what lies beside it comes as one packed weight ``X.weight``.

        ``settings`` need not be read: every layer states its own.

        Raises:
            CheckpointError: parts are missing.
        """
        return HqqCheckpoint(checkpoint)


def _encoded(groups: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """[64, N] float32, a column a group, to packed codes, scales [1, N] and zeros [1, N]."""
    if not bool(groups.isfinite().all()):
        raise ConfigError("a weight with numbers that are not finite cannot be hqq")
    top = (1 << bits) - 1
    low, high = groups.amin(0, keepdim=True), groups.amax(0, keepdim=True)
    # Here codes are w * factor + zero; what is kept is 1 / factor.
    factor = (top / (high - low)).clamp(max=_LARGEST_SCALE)
    factor = torch.where(high - low <= _SMALLEST_RANGE, 1.0, factor)
    zero = best = -low * factor
    least, beta = torch.inf, _BETA
    for _ in range(STEPS):
        codes = (groups * factor + zero).round().clamp(0, top)
        error = groups - (codes - zero) / factor
        mean = float(error.abs().mean())
        if mean >= least:
            break
        least, best = mean, zero
        # The half-quadratic split: outliers are what a shrinkage leaves of the error.
        size = error.abs()
        outliers = error.sign() * (size - size.pow(_NORM - 1) / beta).clamp(min=0)
        outliers = torch.where(size > 0, outliers, 0.0)
        zero = (codes - (groups - outliers) * factor).mean(0, keepdim=True)
        beta *= _KAPPA
    codes = (groups * factor + best).round().clamp(0, top)
    return pack(codes, bits), 1 / factor, best
