"""A Hugging Face checkpoint whose HQQ weights come packed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tramontane.errors import CheckpointError
from tramontane.protocols import Checkpoint, CheckpointView, PackedWeight
from tramontane_hqq.weight import WORDS, HqqWeight

_NEEDED = ("scale", "zero", "nbits", "shape")
_BESIDE = (
    "W_q", *_NEEDED, "group_size", "axis", "packing", "unpack_view_dtype", "view_as_float",
    "quant_scale", "quant_zero", "compute_dtype", "offload_meta", "encoded_state_dict",
    "stores_quant_config", "channel_wise", "optimize", "round_zero",
)  # fmt: skip
"""What ``HQQLinear.state_dict`` stores beside a bias: tensors, and settings as tensors."""


class HqqCheckpoint(CheckpointView):
    """``X.W_q`` of the checkpoint below, with its scale, zero and settings, is ``X.weight``.

    Args:
        inner: the checkpoint as stored.

    Raises:
        CheckpointError: a part is missing.
    """

    def __init__(self, inner: Checkpoint) -> None:
        super().__init__(inner)
        stored = set(inner.names())
        self._modules = {n.removesuffix(".W_q") for n in stored if n.endswith(".W_q")}
        for module in sorted(self._modules):
            missing = [part for part in _NEEDED if f"{module}.{part}" not in stored]
            if missing:
                raise CheckpointError(
                    f"the checkpoint has '{module}.W_q' but not '{module}.{missing[0]}'. Scales "
                    f"that are quantized themselves are not supported; quantize without "
                    f"quant_scale and quant_zero"
                )
        self._stored = stored

    def names(self) -> Sequence[str]:
        parts = {f"{module}.{part}" for module in self._modules for part in _BESIDE}
        kept = [name for name in self.inner.names() if name not in parts]
        return [*(f"{module}.weight" for module in sorted(self._modules)), *kept]

    def tensor(self, name: str) -> Tensor | PackedWeight:
        module = name.removesuffix(".weight")
        if module not in self._modules or module == name:
            return self.inner.tensor(name)
        bits = self._number(module, "nbits")
        codes = self._part(module, "W_q")
        try:
            if bits not in WORDS:
                raise ValueError(f"nbits is {bits}, it must be one of {', '.join(map(str, WORDS))}")
            if f"{module}.view_as_float" in self._stored and self._number(module, "view_as_float"):
                codes = codes.contiguous().view(WORDS[bits])
            shape = [int(size) for size in self._part(module, "shape")]
            scales, zeros = self._part(module, "scale"), self._part(module, "zero")
            axis = self._number(module, "axis") if f"{module}.axis" in self._stored else 0
            return HqqWeight(codes, scales, zeros, shape, bits=bits, axis=axis)
        except (ValueError, RuntimeError) as cause:
            raise CheckpointError(f"{name}: {cause}") from cause

    def release(self, name: str) -> None:
        module = name.removesuffix(".weight")
        super().release(f"{module}.W_q" if module in self._modules else name)

    def _part(self, module: str, part: str) -> Tensor:
        tensor = self.inner.tensor(f"{module}.{part}")
        if isinstance(tensor, PackedWeight):
            raise CheckpointError(f"{module}.{part} is packed itself")
        return tensor

    def _number(self, module: str, part: str) -> int:
        tensor = self._part(module, part)
        if tensor.numel() != 1 or tensor.dtype is torch.bool or tensor.dtype.is_floating_point:
            raise CheckpointError(f"{module}.{part} must be one whole number, not {tensor}")
        return int(tensor.item())
