"""A checkpoint whose compressed weights come packed.

Beside ``X.weight_scale`` [rows of tiles, tiles a row] lies either ``X.weight``, int8 or
float8_e4m3fn, or ``X.weight_packed`` [out, ceil(in * bits / 32)] int32 with ``X.weight_shape``:
each row one stream of bits, from the lowest up, of codes that are ``2 ** (bits - 1)`` above the
numbers meant. ``X.weight_zero_point`` is packed the same way, but down its columns, where the
weight is packed and tiles are no whole tensors. ``X.weight_g_idx`` [in] names the group of each
column.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from tramontane.errors import CheckpointError, ConfigError
from tramontane.hooks import plugin_manager
from tramontane.nn import GroupAffineWeight, column_order, pack_bits, unpack_bits
from tramontane.protocols import Checkpoint, CheckpointView, PackedWeight, Quantizer
from tramontane_compressed_tensors.scheme import Scheme, Schemes

_PARTS = ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx")
_OF_ACTIVATIONS = re.compile(r"(input|output|[qkv])_(scale|zero_point|global_scale)$")
"""Last part of a name: scales of what is not quantized here."""


class CompressedCheckpoint(CheckpointView):
    """
    Args:
        inner: the checkpoint as stored.
        schemes: how its weights are packed.

    Raises:
        CheckpointError: parts are missing, or belong to no scheme.
        MissingPluginError: nothing installed holds 8-bit floats.
    """

    def __init__(self, inner: Checkpoint, schemes: Schemes) -> None:
        super().__init__(inner)
        self._stored = set(inner.names())
        split = [name.rpartition(".") for name in self._stored]
        self._dropped = {
            f"{module}.{part}" for module, _, part in split
            if part in _PARTS or _OF_ACTIVATIONS.match(part)
        }  # fmt: skip
        modules = sorted({module for module, _, part in split if part in _PARTS})
        self._schemes = {module: schemes.of(module) for module in modules}
        for module, scheme in self._schemes.items():
            for part in ("weight_scale", *_needed(scheme)):
                if f"{module}.{part}" not in self._stored:
                    raise CheckpointError(
                        f"the checkpoint has parts of {module}, which is {scheme.layout}, but not "
                        f"'{module}.{part}'"
                    )
        self._fp8: Quantizer | None = None
        if any(scheme.kind == "float" for scheme in self._schemes.values()):
            plugins = plugin_manager()
            self._fp8 = plugins.resolve(plugins.get("quantizers", "fp8"))()

    def names(self) -> Sequence[str]:
        plain = {f"{module}.weight" for module in self._schemes}
        kept = [n for n in self.inner.names() if n not in self._dropped and n not in plain]
        return [*sorted(plain), *kept]

    def tensor(self, name: str) -> Tensor | PackedWeight:
        module = self._module(name)
        if module is None:
            tensor = self.inner.tensor(name)
            if name.endswith(".weight") and isinstance(tensor, Tensor) and tensor.itemsize == 1:
                raise CheckpointError(f"{name} is stored in 8 bits without '{name}_scale'")
            return tensor
        scheme = self._schemes[module]
        try:
            if self._fp8 is not None and scheme.kind == "float":
                return self._floats(self._fp8, module, scheme)
            return self._integers(module, scheme)
        except (ValueError, ConfigError) as cause:
            raise CheckpointError(f"{name}: {cause}") from cause

    def packed_bytes(self, name: str) -> int | None:
        module = self._module(name)
        if module is None:
            return None
        scheme = self._schemes[module]
        codes, scales = self._part(module, _holder(scheme)), self._part(module, "weight_scale")
        if scheme.kind == "float" or codes.dim() != 2 or scales.dim() > 2:
            return None  # whoever asks comes to `tensor`
        groups = scales.shape[-1] if scales.dim() == 2 else 1
        return codes.nbytes + codes.shape[0] * groups * (scales.dtype.itemsize + 4)

    def release(self, name: str) -> None:
        module = self._module(name)
        super().release(name if module is None else f"{module}.{_holder(self._schemes[module])}")

    # Making weights -----------------------------------------------------------------------

    def _integers(self, module: str, scheme: Scheme) -> GroupAffineWeight:
        bits, shape, codes = self._codes(module, scheme)
        tile = _concrete(scheme, shape)
        if shape[1] % tile[1]:
            raise ValueError(f"groups of {tile[1]} columns do not divide rows of {shape[1]}")
        scales = _gridded(self._part(module, "weight_scale"), shape, tile)
        zeros = self._zeros(module, scheme, scales)
        order = None
        if scheme.tile[1] is not None and f"{module}.weight_g_idx" in self._stored:
            groups = self._part(module, "weight_g_idx")
            if not bool((groups == -1).any()):  # which says that there is no order
                order = column_order(groups, shape[1], scales.shape[1])
        if order is not None:
            codes = pack_bits(unpack_bits(codes, bits)[:, order], bits)
        biases = -scales.float() * (zeros + (1 << bits - 1))
        if tile[0] > 1:
            scales, biases = (
                grid.repeat_interleave(tile[0], 0)[: shape[0]] for grid in (scales, biases)
            )
        return GroupAffineWeight(codes, scales, biases, bits=bits, order=order)

    def _codes(self, module: str, scheme: Scheme) -> tuple[int, tuple[int, int], Tensor]:
        """Bits of a code, shape of the weight, and codes [out, in * bits / 8] that are above zero;
        views of the file where they can be."""
        stored = self._part(module, _holder(scheme))
        if scheme.layout != "pack-quantized":
            if stored.dtype is not torch.int8 or stored.dim() != 2:
                raise ValueError(f"{stored.dtype} {list(stored.shape)} is no matrix of int8")
            codes = stored.view(torch.uint8) ^ 0x80
            self.release(f"{module}.weight")
            return 8, (stored.shape[0], stored.shape[1]), codes
        bits, given = scheme.bits, self._part(module, "weight_shape")
        if given.numel() != 2 or given.dtype.is_floating_point:
            raise ValueError(f"weight_shape is {given}; rows and columns are expected")
        rows, columns = (int(side) for side in given.flatten())
        needed = [rows, -(-columns * bits // 32)]
        if stored.dtype is not torch.int32 or list(stored.shape) != needed:
            raise ValueError(
                f"{bits} bits a number and weight_shape {[rows, columns]} ask for words int32 "
                f"{needed}, not {stored.dtype} {list(stored.shape)}"
            )
        codes = stored.contiguous().view(torch.uint8)
        used, rest = divmod(columns * bits, 8)
        if rest:
            raise ValueError(f"rows of {columns} numbers of {bits} bits do not fill whole bytes")
        return bits, (rows, columns), codes[:, :used].contiguous()

    def _zeros(self, module: str, scheme: Scheme, scales: Tensor) -> Tensor:
        """What is subtracted from the numbers of each tile, in the shape of ``scales``."""
        if f"{module}.weight_zero_point" not in self._stored:
            return torch.zeros_like(scales, dtype=torch.float32)
        zeros = self._part(module, "weight_zero_point")
        if zeros.dtype is torch.int32 and scheme.layout == "pack-quantized":
            rows, groups = scales.shape
            needed = [-(-rows * scheme.bits // 32), groups]
            if list(zeros.shape) != needed:
                raise ValueError(
                    f"zero points of {rows} rows take words {needed}, not {list(zeros.shape)}"
                )
            words = zeros.T.contiguous().view(torch.uint8)
            return unpack_bits(words, scheme.bits)[:, :rows].T.float() - (1 << scheme.bits - 1)
        if zeros.dtype is not torch.int8 or zeros.numel() != scales.numel():
            raise ValueError(
                f"zero points {zeros.dtype} {list(zeros.shape)} do not fit {scales.numel()} scales"
            )
        return zeros.reshape(scales.shape).float()

    def _floats(self, fp8: Quantizer, module: str, scheme: Scheme) -> PackedWeight:
        codes = self._part(module, "weight")
        if codes.dtype is not torch.float8_e4m3fn or codes.dim() != 2:
            raise ValueError(f"{codes.dtype} {list(codes.shape)} is no matrix of float8_e4m3fn")
        if f"{module}.weight_zero_point" in self._stored:
            zeros = self._part(module, "weight_zero_point")
            if bool(zeros.float().any()):
                raise ValueError("a symmetric weight has zero points that are not zero")
        tile = _concrete(scheme, (codes.shape[0], codes.shape[1]))
        scales = _gridded(self._part(module, "weight_scale"), tuple(codes.shape), tile)
        return fp8.deserialize({"weight": codes, "scale": scales.float(), "tile": tile})

    def _part(self, module: str, part: str) -> Tensor:
        tensor = self.inner.tensor(f"{module}.{part}")
        if isinstance(tensor, PackedWeight):
            raise CheckpointError(f"{module}.{part} is packed itself")
        return tensor

    def _module(self, name: str) -> str | None:
        module = name.removesuffix(".weight")
        return module if module != name and module in self._schemes else None


def _holder(scheme: Scheme) -> str:
    """The part that holds the numbers."""
    return "weight_packed" if scheme.layout == "pack-quantized" else "weight"


def _needed(scheme: Scheme) -> tuple[str, ...]:
    shape = ("weight_shape",) if scheme.layout == "pack-quantized" else ()
    return (_holder(scheme), *shape, *(() if scheme.symmetric else ("weight_zero_point",)))


def _concrete(scheme: Scheme, shape: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns that share a scale."""
    rows, columns = (side or whole for side, whole in zip(scheme.tile, shape, strict=True))
    return max(1, rows), max(1, columns)


def _gridded(scales: Tensor, shape: Sequence[int], tile: tuple[int, int]) -> Tensor:
    """Scales [rows of tiles, tiles a row]; files leave axes of one out, or add them."""
    grid = [-(-side // size) for side, size in zip(shape, tile, strict=True)]
    alike = [n for n in scales.shape if n != 1] == [n for n in grid if n != 1]
    if not alike or not scales.dtype.is_floating_point or scales.dtype.itemsize == 1:
        raise ValueError(
            f"scales {scales.dtype} {list(scales.shape)} do not fit a weight of shape "
            f"{list(shape)} in tiles of {list(tile)}, which takes {grid}"
        )
    return scales.reshape(grid)
