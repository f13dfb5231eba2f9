"""The ``fp8`` weight format as a quantizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from tramontane.errors import ConfigError
from tramontane.protocols import Checkpoint, PackedWeight, joined_parts
from tramontane_fp8.checkpoint import Fp8Checkpoint
from tramontane_fp8.weight import Fp8Weight

_TYPE = "fp8"
_LARGEST = 448.0  # the largest finite number of E4M3
_TILE = (128, 128)
_SUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "fmt": ("e4m3",),
    "scale_fmt": ("float", "ue8m0"),
    "expert_dtype": ("fp8",),
    # Activations are not quantized, which is the more exact of what either scheme allows.
    "activation_scheme": ("dynamic", "static"),
}
# Numbers encoded at a time.
_CHUNK = 1 << 22


class Fp8Quantizer:
    """Packs with one scale a matrix and reads Hugging Face checkpoints."""

    name = _TYPE

    def quantize(
        self, weight: Tensor, type_name: str = _TYPE, *, importance: Tensor | None = None
    ) -> Fp8Weight:
        """Pack ``weight`` [..., out, in] on its device: the largest number of a matrix becomes
        the largest of the format, and each number the nearest there is, the even one of two.

        Args:
            weight: any float dtype.
            type_name: ``"fp8"``, in any case.
            importance: ignored; one scale for all leaves nothing to weigh.

        Raises:
            ConfigError: an unknown type, no matrix, or numbers that are not finite.
        """
        if self.packed_bytes(weight.shape, type_name) is None:
            raise ConfigError(
                f"a weight of shape {list(weight.shape)} cannot be {_TYPE}: it must be a matrix or "
                f"a stack of them"
            )
        weight = weight.detach()
        largest = weight.abs().amax((-2, -1), keepdim=True).float()
        if not bool(largest.isfinite().all()):
            raise ConfigError(f"a weight with numbers that are not finite cannot be {_TYPE}")
        scales = torch.where(largest > 0, largest / _LARGEST, 1.0)
        codes = torch.empty(weight.shape, dtype=torch.float8_e4m3fn, device=weight.device)
        step = max(1, _CHUNK // weight.shape[-1])
        stacks = zip(
            weight.reshape(-1, *weight.shape[-2:]),
            codes.view(-1, *weight.shape[-2:]),
            scales.flatten(),
            strict=True,
        )
        for values, out, scale in stacks:
            for start in range(0, values.shape[0], step):
                scaled = values[start : start + step].float() / scale
                out[start : start + step] = scaled.clamp_(-_LARGEST, _LARGEST)
        return Fp8Weight(codes, scales, (weight.shape[-2], weight.shape[-1]))

    def packed_bytes(self, shape: Sequence[int], type_name: str = _TYPE) -> int | None:
        """Bytes that a weight of ``shape`` takes; None where it is no matrix.

        Raises:
            ConfigError: an unknown type.
        """
        if type_name.lower() != _TYPE:
            raise ConfigError(f"{type_name!r} is no type of {_TYPE}; its only one is {_TYPE!r}")
        if len(shape) not in (2, 3) or not prod(shape):
            return None
        return prod(shape) + 4 * prod(shape[:-2])

    def serialize(self, weight: PackedWeight) -> dict[str, Any]:
        """``weight`` [..., out, in] float8_e4m3fn, ``scale`` [..., tiles down, tiles across]
        float32, which multiplies it, and ``tile``, rows and columns that share one.

        Raises:
            ConfigError: another format, or a part that begins within a tile.
        """
        if not isinstance(weight, Fp8Weight) or weight.first_row:
            raise ConfigError(f"{weight!r} is not {_TYPE}, or begins within a tile")
        return {
            "weight": weight.codes.contiguous(),
            "scale": weight.scales.contiguous(),
            "tile": weight.tile,
        }

    def deserialize(self, parts: Mapping[str, Any]) -> Fp8Weight:
        """See `tramontane.protocols.Quantizer.deserialize`."""
        with joined_parts(_TYPE):
            return Fp8Weight(parts["weight"], parts["scale"], parts["tile"])

    def read_checkpoint(self, checkpoint: Checkpoint, settings: Mapping[str, Any]) -> Checkpoint:
        """Weights come packed with their scales, everything else as it is.

        Which modules are packed shows in their names and dtypes, so ``modules_to_not_convert``
        need not be read.

        Raises:
            ConfigError: another kind of 8-bit float, or other experts, than is covered.
            CheckpointError: scales whose weight is missing.
        """
        for key, values in _SUPPORTED.items():
            if settings.get(key) is not None and settings[key] not in values:
                raise ConfigError(
                    f"quantization_config.{key} is {settings[key]!r}; {_TYPE} reads "
                    f"{', '.join(map(repr, values))}"
                )
        return Fp8Checkpoint(checkpoint, _tile(settings.get("weight_block_size")))


def _tile(given: Any) -> tuple[int, int]:
    if given is None:
        return _TILE
    sizes = list(given) if isinstance(given, list | tuple) else []
    if len(sizes) != 2 or not all(type(size) is int and size > 0 for size in sizes):
        raise ConfigError(
            f"quantization_config.weight_block_size is {given!r}; two counts are expected"
        )
    return sizes[0], sizes[1]
