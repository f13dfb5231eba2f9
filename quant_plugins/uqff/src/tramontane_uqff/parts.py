"""From the parts of one stored weight to the weight, through the quantizer of its format."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from attrs import frozen
from torch import Tensor

from tramontane.errors import CheckpointError, MissingPluginError
from tramontane.hooks import PluginManager
from tramontane.protocols import PackedWeight, Quantizer
from tramontane_uqff.layout import MAX_DIMS, Kind

_PLAIN = {0: torch.float32, 1: torch.float16, 30: torch.bfloat16}
"""ggml types that are plain numbers."""

QUANTIZERS = {
    Kind.GGUF: "gguf", Kind.HQQ: "hqq", Kind.FP8: "fp8", Kind.AFQ: "afq", Kind.F8Q8: "f8q8",
    Kind.MXFP4: "mxfp4",
}  # fmt: skip
"""Kind → the registry's name of the quantizer that knows it."""

FLAT = (Kind.HQQ, Kind.FP8, Kind.F8Q8)
"""Kinds that no stack of experts is stored in."""


@frozen
class StoredWeight:
    """One weight as a file has it.

    Attributes:
        where: file and key, for messages.
        kind: how it is stored.
        parts: by the suffixes of generation 1 (`tramontane_uqff.layout`), ``""`` for the weight.
    """

    where: str
    kind: Kind
    parts: Mapping[str, Any]

    def build(self, plugins: PluginManager) -> Tensor | PackedWeight:
        """The weight; parts stay where they are.

        Raises:
            MissingPluginError: its format is not installed.
            CheckpointError: the parts do not fit each other.
        """
        if self.kind is Kind.UNQUANT:
            plain: Tensor = self.parts[""]
            return plain
        self._check_shape()
        if self.kind is Kind.GGUF and self.parts["dtype"] in _PLAIN:
            return self._plain(_PLAIN[self.parts["dtype"]])
        quantizer: Quantizer = plugins.resolve(plugins.get("quantizers", QUANTIZERS[self.kind]))()
        try:
            weight = quantizer.deserialize(_ARRANGED[self.kind](self.parts))
        except MissingPluginError:
            raise
        except (ValueError, KeyError, TypeError, RuntimeError, OverflowError) as cause:
            raise CheckpointError(f"{self.where}: {cause}") from cause
        if len(weight.shape) > 2 and self.kind in FLAT:
            raise CheckpointError(
                f"{self.where}: {self.kind.name} holds single matrices, not stacks of shape "
                f"{list(weight.shape)}"
            )
        return weight

    def _check_shape(self) -> None:
        shape = self.parts.get("shape")
        if shape is not None and (not 2 <= len(shape) <= MAX_DIMS or not all(shape)):
            raise CheckpointError(
                f"{self.where} has shape {list(shape)}; a weight is a matrix or a stack of them"
            )

    def _plain(self, dtype: torch.dtype) -> Tensor:
        data, shape = self.parts[""], self.parts["shape"]
        if data.numel() != prod(shape) * dtype.itemsize:
            raise CheckpointError(
                f"{self.where} of shape {list(shape)} needs {prod(shape) * dtype.itemsize} bytes, "
                f"not {data.numel()}"
            )
        if data.data_ptr() % dtype.itemsize or data.storage_offset() % dtype.itemsize:
            data = data.clone()
        seen: Tensor = data.view(dtype).view(shape)
        return seen


def _gguf(parts: Mapping[str, Any]) -> dict[str, Any]:
    return {"data": parts[""], "dtype": parts["dtype"], "shape": parts["shape"]}


def _named(parts: Mapping[str, Any]) -> dict[str, Any]:
    """Parts whose names are those of the format itself."""
    return {name or "weight": value for name, value in parts.items()}


def _fp8(parts: Mapping[str, Any]) -> dict[str, Any]:
    """One scale for all; those of activations are of no use here."""
    codes, scale = parts[""], float(parts["dequant_w_scale"])
    if codes.dim() != 2 or not codes.numel():
        raise ValueError(f"an FP8 weight of shape {list(codes.shape)} is no matrix")
    return {
        "weight": codes,
        "scale": torch.full((1, 1), scale, dtype=torch.float32),
        "tile": (codes.shape[0], codes.shape[1]),
    }


def _mxfp4(parts: Mapping[str, Any]) -> dict[str, Any]:
    codes, scales = parts[""], parts["scales"]
    if codes.dim() not in (2, 3) or codes.shape[-1] % 16:
        raise ValueError(f"MXFP4 codes of shape {list(codes.shape)} are not whole blocks")
    return {"blocks": codes.unflatten(-1, (-1, 16)), "scales": scales}


_ARRANGED = {
    Kind.GGUF: _gguf, Kind.HQQ: _named, Kind.FP8: _fp8, Kind.AFQ: _named, Kind.F8Q8: _named,
    Kind.MXFP4: _mxfp4,
}  # fmt: skip
