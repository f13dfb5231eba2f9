"""What a checkpoint holds, and the dtype a model computes in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from attrs import evolve, frozen

from tramontane.errors import ConfigError
from tramontane.protocols import Checkpoint, PackedWeight

NAMES: dict[str, torch.dtype] = {
    "bf16": torch.bfloat16,
    "f16": torch.float16,
    "f32": torch.float32,
}
"""``ModelDType`` without Auto, in the order in which Auto prefers them."""


@frozen
class Inventory:
    """What a checkpoint's tensors take.

    Attributes:
        elements: floating dtype → number of elements stored in it.
        packed_bytes: bytes of quantized tensors.
        other_bytes: bytes of tensors that are neither.
        largest_bytes: the largest single tensor as stored.
    """

    elements: Mapping[torch.dtype, int]
    packed_bytes: int
    other_bytes: int
    largest_bytes: int

    def quantized(self, elements: int, packed_bytes: int) -> Inventory:
        """The same once ``elements`` of the floating numbers are packed into so many bytes."""
        count = sum(self.elements.values())
        share = 1 - min(elements, count) / count if count else 1.0
        return evolve(
            self,
            elements={dtype: int(n * share) for dtype, n in self.elements.items()},
            packed_bytes=self.packed_bytes + packed_bytes,
        )

    def bytes_as(self, dtype: torch.dtype) -> int:
        """Bytes in memory when floating tensors become ``dtype``."""
        return sum(self.elements.values()) * dtype.itemsize + self.packed_bytes + self.other_bytes


def survey(checkpoint: Checkpoint, names: Iterable[str] | None = None) -> Inventory:
    """Look at tensors of a checkpoint without reading their data: at all, or at those named."""
    elements: dict[torch.dtype, int] = {}
    packed = other = largest = 0
    converted: Callable[[str], int | None] = getattr(checkpoint, "packed_bytes", lambda name: None)
    for name in checkpoint.names() if names is None else names:
        size = converted(name)
        if size is not None:
            packed, largest = packed + size, max(largest, size)
            continue
        tensor = checkpoint.tensor(name)
        largest = max(largest, tensor.nbytes)
        if isinstance(tensor, PackedWeight):
            packed += tensor.nbytes
        elif tensor.dtype.is_floating_point:
            elements[tensor.dtype] = elements.get(tensor.dtype, 0) + tensor.numel()
        else:
            other += tensor.nbytes
    return Inventory(elements, packed, other, largest)


def choose_dtype(asked: str, inventory: Inventory, device: torch.device) -> torch.dtype:
    """The dtype of activations and of weights that are not packed.

    ``Auto`` keeps the checkpoint's own dtype where the device multiplies it at speed, else takes
    the first of BF16, F16, F32 that it does. Packed weights say nothing of activations: with
    them the CPU takes F32, as its quantized kernels do.

    Args:
        asked: a ``ModelDType`` or its name; ``Auto``, ``BF16``, ``F16``, ``F32``, in any case.

    Raises:
        ConfigError: no such dtype.
    """
    name = str(getattr(asked, "value", asked)).lower()
    if name in NAMES:
        return NAMES[name]
    if name != "auto":
        raise ConfigError(f"dtype {asked!r} is unknown; use Auto, BF16, F16 or F32")
    order = [dtype for dtype in NAMES.values() if multiplies(dtype, device)]
    if inventory.packed_bytes:
        return torch.float32 if device.type == "cpu" else order[0]
    stored = max(inventory.elements, key=inventory.elements.__getitem__, default=torch.float32)
    return stored if stored in order else order[0]


def multiplies(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether matrices of ``dtype`` are multiplied at speed on ``device``."""
    if dtype is torch.float32:
        return True
    if device.type == "cuda":
        needed = (8, 0) if dtype is torch.bfloat16 else (5, 3)
        return torch.cuda.get_device_capability(device) >= needed
    if device.type == "cpu":
        kind = "bf16" if dtype is torch.bfloat16 else "fp16"
        return bool(getattr(torch.ops.mkldnn, f"_is_mkldnn_{kind}_supported")())
    return dtype is torch.float16
