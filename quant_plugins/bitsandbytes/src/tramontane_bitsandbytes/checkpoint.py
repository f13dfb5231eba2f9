"""A checkpoint whose bitsandbytes weights come packed.

Of 4 bits: ``X.weight`` [bytes, 1] (of any dtype, it is only bytes), ``X.weight.absmax``, a scale
for each block, ``X.weight.quant_map``, the table of numbers, and ``X.weight.quant_state.*``; where
scales are packed themselves, ``X.weight.nested_absmax`` and ``X.weight.nested_quant_map``.
Of 8 bits (Dettmers et al., arXiv:2208.07339): ``X.weight`` [out, in] int8 and ``X.SCB`` [out], the
largest number of each row.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tramontane.errors import CheckpointError
from tramontane.nn import GroupAffineWeight
from tramontane.protocols import Checkpoint, CheckpointView, PackedWeight
from tramontane_bitsandbytes.state import QuantState
from tramontane_bitsandbytes.weight import CodebookWeight, NestedScales

_STATE = "quant_state.bitsandbytes__"
_PARTS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
_LARGEST = 127  # what the largest number of a row becomes


class BitsAndBytesCheckpoint(CheckpointView):
    """
    Args:
        inner: the checkpoint as stored.

    Raises:
        CheckpointError: a part is missing.
    """

    def __init__(self, inner: Checkpoint) -> None:
        super().__init__(inner)
        names = inner.names()
        self._stored = set(names)
        self._states: dict[str, str] = {}  # weight of 4 bits → kind
        self._bytes: dict[str, str] = {}  # weight of 8 bits → its scales
        self._dropped: set[str] = set()
        for name in names:
            weight, found, kind = name.partition(f".{_STATE}")
            owner, _, part = name.rpartition(".")
            if found:
                if weight in self._states:
                    raise CheckpointError(f"the checkpoint has several {weight}.{_STATE}*")
                self._states[weight] = kind
            elif part == "SCB":
                self._bytes[f"{owner}.weight"] = name
            elif part not in _PARTS and part != "weight_format":
                continue
            self._dropped.add(name)
        for name in self._dropped:
            owner, _, part = name.rpartition(".")
            if part in _PARTS and owner not in self._states:
                raise CheckpointError(f"the checkpoint has '{name}' but not '{owner}.{_STATE}*'")
        for weight in self._states:
            self._need(weight, weight, f"{weight}.absmax", f"{weight}.quant_map")
        for weight in self._bytes:
            self._need(weight, weight)

    def _need(self, weight: str, *names: str) -> None:
        for name in names:
            if name not in self._stored:
                raise CheckpointError(f"the checkpoint has parts of '{weight}' but not '{name}'")

    def names(self) -> Sequence[str]:
        return [name for name in self.inner.names() if name not in self._dropped]

    def tensor(self, name: str) -> Tensor | PackedWeight:
        try:
            if name in self._states:
                return self._four_bits(name)
            if name in self._bytes:
                return self._eight_bits(name)
        except ValueError as cause:
            raise CheckpointError(f"{name}: {cause}") from cause
        tensor = self.inner.tensor(name)
        if isinstance(tensor, Tensor) and name.endswith(".weight"):
            if tensor.dtype is torch.uint8:
                raise CheckpointError(f"{name} is stored in bytes without '{name}.{_STATE}*'")
            if tensor.dtype is torch.int8:
                raise CheckpointError(
                    f"{name} is stored in 8 bits without '{name.removesuffix('weight')}SCB'"
                )
        return tensor

    def packed_bytes(self, name: str) -> int | None:
        if name not in self._bytes:
            return None
        codes = self._part(name)
        return codes.nbytes + self._part(self._bytes[name]).numel() * 8

    def _four_bits(self, name: str) -> CodebookWeight:
        described = f"{name}.{_STATE}{self._states[name]}"
        try:
            state = QuantState.read(self._part(described), self._states[name])
        except ValueError as cause:
            raise CheckpointError(f"{described}: {cause}") from cause
        codes = self._part(name)
        if codes.dim() != 2 or codes.shape[1] != 1:
            raise ValueError(f"codes of shape {list(codes.shape)} are no column")
        return CodebookWeight(
            codes.flatten().view(torch.uint8),
            self._scales(name, state),
            self._part(f"{name}.quant_map"),
            state.shape,
            kind=state.kind,
            block=state.block,
        )

    def _scales(self, name: str, state: QuantState) -> Tensor | NestedScales:
        codes, size = self._part(f"{name}.absmax"), state.nested_block
        if size is None:
            if codes.dtype is not torch.float32 or codes.dim() != 1:
                raise ValueError(f"absmax is {codes.dtype} {list(codes.shape)}, not float32 [N]")
            return codes
        self._need(name, f"{name}.nested_absmax", f"{name}.nested_quant_map")
        scales, table = self._part(f"{name}.nested_absmax"), self._part(f"{name}.nested_quant_map")
        for part, tensor, dtype, shape in (
            ("absmax", codes, torch.uint8, [codes.numel()]),
            ("nested_absmax", scales, torch.float32, [-(-codes.numel() // size)]),
            ("nested_quant_map", table, torch.float32, [256]),
        ):
            if tensor.dtype is not dtype or list(tensor.shape) != shape:
                raise ValueError(
                    f"{part} is {tensor.dtype} {list(tensor.shape)}; {dtype} {shape} is expected"
                )
        return NestedScales(
            codes=codes, table=table, scales=scales, offset=torch.tensor(state.offset), size=size
        )

    def _eight_bits(self, name: str) -> GroupAffineWeight:
        codes, largest = self._part(name), self._part(self._bytes[name])
        layout = f"{name}_format"
        if layout in self._stored and bool(self._part(layout).any()):
            raise ValueError(
                f"weight_format is {self._part(layout)}; rows in order (0) are covered"
            )
        if codes.dtype is not torch.int8 or codes.dim() != 2:
            raise ValueError(f"{codes.dtype} {list(codes.shape)} is no matrix of int8")
        if not largest.dtype.is_floating_point or list(largest.shape) != [codes.shape[0]]:
            raise ValueError(
                f"SCB is {largest.dtype} {list(largest.shape)}; one a row of {list(codes.shape)} "
                f"is expected"
            )
        scales = (largest.float() / _LARGEST).unsqueeze(1)
        above_zero = codes.view(torch.uint8) ^ 0x80
        self.release(name)
        return GroupAffineWeight(above_zero, scales, -128 * scales, bits=8)

    def _part(self, name: str) -> Tensor:
        tensor = self.inner.tensor(name)
        if isinstance(tensor, PackedWeight):
            raise CheckpointError(f"{name} is packed itself")
        return tensor
