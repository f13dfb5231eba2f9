"""A Hugging Face checkpoint whose FP8 weights come packed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tramontane.errors import CheckpointError
from tramontane.protocols import Checkpoint, CheckpointView, PackedWeight
from tramontane_fp8.weight import Fp8Weight

_SCALES = ("_scale_inv", "_scale")
"""What follows a weight's name in that of its scales. Both multiply; the first is the reciprocal
of the factor that quantizing multiplied by."""

_OF_ACTIVATIONS = (
    "input_scale", "activation_scale", "input_scale_ub", "k_scale", "v_scale",
)  # fmt: skip
"""Scales of what is not quantized here: inputs of the products, keys and values."""

_E8M0_BIAS = 127


class Fp8Checkpoint(CheckpointView):
    """``X`` and ``X_scale_inv`` or ``X_scale`` of the checkpoint below are one weight ``X``.

    Args:
        inner: the checkpoint as stored.
        tile: rows and columns that share a scale, where scales form a grid.

    Raises:
        CheckpointError: scales whose weight is missing.
    """

    def __init__(self, inner: Checkpoint, tile: tuple[int, int]) -> None:
        super().__init__(inner)
        self._tile = tile
        stored = set(inner.names())
        self._scales: dict[str, str] = {}
        self._dropped = {n for n in stored if n.rpartition(".")[2].endswith(_OF_ACTIVATIONS)}
        for name in stored - self._dropped:
            end = next((e for e in _SCALES if name.endswith(e)), None)
            if end is None:
                continue
            weight = name.removesuffix(end)
            if weight in stored:
                self._scales[weight] = name
            elif weight.endswith("weight"):
                raise CheckpointError(
                    f"the checkpoint has {name!r} but not {weight!r}; an FP8 weight needs both"
                )
        self._dropped |= set(self._scales.values())

    def names(self) -> Sequence[str]:
        return [name for name in self.inner.names() if name not in self._dropped]

    def tensor(self, name: str) -> Tensor | PackedWeight:
        codes = self.inner.tensor(name)
        scale_name = self._scales.get(name)
        if isinstance(codes, PackedWeight):
            return codes
        if scale_name is None:
            if codes.dtype.is_floating_point and codes.dtype.itemsize == 1:
                raise CheckpointError(
                    f"{name} is stored in 8 bits without its scales ({name}{_SCALES[0]})"
                )
            return codes
        scales = self.inner.tensor(scale_name)
        if isinstance(scales, PackedWeight):
            raise CheckpointError(f"{scale_name} is packed itself")
        try:
            return _weight(codes, _as_float(scales), self._tile)
        except ValueError as cause:
            raise CheckpointError(f"{name}: {cause}") from cause


def _weight(codes: Tensor, scales: Tensor, tile: tuple[int, int]) -> Fp8Weight:
    """Scales are one for all, one a matrix of a stack, one a row, or one a tile."""
    if codes.dim() not in (2, 3):
        raise ValueError(f"an FP8 weight of shape {list(codes.shape)} is no matrix")
    *stack, num_rows, num_columns = codes.shape
    if scales.numel() == 1:
        grid = scales.reshape(1, 1).expand(*stack, 1, 1)
        return Fp8Weight(codes, grid, (max(num_rows, 1), max(num_columns, 1)))
    if stack and list(scales.shape) in ([*stack], [*stack, 1, 1]):
        return Fp8Weight(codes, scales.view(*stack, 1, 1), (num_rows, num_columns))
    if list(scales.shape) in ([*stack, num_rows], [*stack, num_rows, 1]):
        return Fp8Weight(codes, scales.reshape(*stack, num_rows, 1), (1, num_columns))
    return Fp8Weight(codes, scales, tile)


def _as_float(scales: Tensor) -> Tensor:
    """Powers of two may be stored as their exponents (OCP MX 1.0, E8M0)."""
    if scales.dtype == torch.uint8:
        return (scales.float() - _E8M0_BIAS).exp2()
    return scales.float()
