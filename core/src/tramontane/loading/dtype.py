"""What a checkpoint holds, and the dtype a model computes in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from attrs import evolve, field, frozen
from torch import Tensor, nn

from tramontane.errors import ConfigError
from tramontane.loading.layers import stored_names
from tramontane.loading.rules import Arrangement
from tramontane.nn import ExpertLinear, multiplies_narrow
from tramontane.protocols import Checkpoint, PackedWeight

NAMES: dict[str, torch.dtype] = {
    "bf16": torch.bfloat16,
    "f16": torch.float16,
    "f32": torch.float32,
}
"""``ModelDType`` without Auto, in the order in which Auto prefers them."""

EIGHT_BIT: dict[str, torch.dtype] = {"f8e4m3": torch.float8_e4m3fn, "i8": torch.int8}
"""What ``PagedCacheType`` has beyond those."""


@frozen
class Inventory:
    """What a checkpoint's tensors take.

    Attributes:
        elements: floating dtype → number of elements stored in it.
        packed_bytes: bytes of quantized tensors.
        other_bytes: bytes of tensors that are neither.
        largest_bytes: the largest single tensor as stored.
        kept: those of ``elements`` that stay in the dtype of the file, see `NarrowLinear`.
    """

    elements: Mapping[torch.dtype, int]
    packed_bytes: int
    other_bytes: int
    largest_bytes: int
    kept: Mapping[torch.dtype, int] = field(factory=dict)

    def quantized(self, elements: int, packed_bytes: int) -> Inventory:
        """The same once ``elements`` of the floating numbers are packed into so many bytes."""
        count = sum(self.elements.values())
        share = 1 - min(elements, count) / count if count else 1.0
        return evolve(
            self,
            elements={dtype: int(n * share) for dtype, n in self.elements.items()},
            packed_bytes=self.packed_bytes + packed_bytes,
            kept={},
        )

    def bytes_as(self, dtype: torch.dtype) -> int:
        """Bytes in memory when floating tensors become ``dtype``, but for those that are kept."""
        converted = sum(self.elements.values()) - sum(self.kept.values())
        kept = sum(count * own.itemsize for own, count in self.kept.items())
        return converted * dtype.itemsize + kept + self.packed_bytes + self.other_bytes


def survey(checkpoint: Checkpoint, names: Iterable[str] | None = None) -> Inventory:
    """Look at tensors of a checkpoint without reading their data: at all, or at those named."""
    elements: dict[torch.dtype, int] = {}
    packed = other = largest = 0
    for name in checkpoint.names() if names is None else names:
        size = _converted_bytes(checkpoint, name)
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


def _converted_bytes(checkpoint: Checkpoint, name: str) -> int | None:
    """What a tensor takes that the checkpoint packs when it is read; None for any other."""
    ask: Callable[[str], int | None] = getattr(checkpoint, "packed_bytes", lambda name: None)
    return ask(name)


@frozen
class Narrow:
    """Which matrices stay in the narrower dtype of their file, because a kernel multiplies them so
    with activations of ``dtype``.

    Attributes:
        checkpoint: where the weights are.
        arrangement: how the model's parameters come out of it.
        dtype: of activations.
    """

    checkpoint: Checkpoint
    arrangement: Arrangement
    dtype: torch.dtype

    def dtype_of(
        self, name: str, meta: Tensor, module: nn.Module, device: torch.device
    ) -> torch.dtype | None:
        """The file's dtype of a parameter that keeps it; None for any other.

        Args:
            name: of the parameter in the model.
            meta: the parameter, without data.
            module: whose it is.
        """
        recipe = self.arrangement.recipes.get(name)
        dimensions = {nn.Linear: 2, ExpertLinear: 3}.get(type(module))
        if meta.dim() != dimensions or recipe is None or name in self.arrangement.aliases.values():
            return None
        kinds = {self._stored_dtype(part) for part in stored_names(recipe)}
        (kind, *others) = kinds
        if kind is None or others or not multiplies_narrow(kind, self.dtype, device):
            return None
        return kind

    def _stored_dtype(self, name: str) -> torch.dtype | None:
        if _converted_bytes(self.checkpoint, name) is not None:
            return None
        stored = self.checkpoint.tensor(name)
        return stored.dtype if isinstance(stored, Tensor) else None

    def elements(self, model: nn.Module, device: torch.device) -> dict[torch.dtype, int]:
        """Dtype of the file → numbers that keep it."""
        counts: dict[torch.dtype, int] = {}
        for name, module in model.named_modules():
            for leaf, meta in module.named_parameters(prefix=name, recurse=False):
                own = self.dtype_of(leaf, meta, module, device)
                if own is not None:
                    counts[own] = counts.get(own, 0) + meta.numel()
        return counts


def asked_dtype(asked: str) -> torch.dtype | None:
    """The dtype of a ``ModelDType`` or its name, in any case; None for Auto.

    Raises:
        ConfigError: no such dtype.
    """
    name = str(getattr(asked, "value", asked)).lower()
    if name != "auto" and name not in NAMES:
        raise ConfigError(f"dtype {asked!r} is unknown; use Auto, BF16, F16 or F32")
    return NAMES.get(name)


def choose_dtype(asked: str, inventory: Inventory, device: torch.device) -> torch.dtype:
    """The dtype of activations and of weights that are not packed.

    The CPU's kernels multiply packed, BF16 and F16 weights as they are, with F32 activations; where
    they do, ``Auto`` takes F32 on every CPU, and such weights keep their dtype in memory. Else it
    keeps the checkpoint's own dtype where the device multiplies it at speed, or takes the first
    of BF16, F16, F32 that it does. Packed weights say nothing of activations.

    Args:
        asked: see `asked_dtype`.

    Raises:
        ConfigError: no such dtype.
    """
    named = asked_dtype(asked)
    if named is not None:
        return named
    order = [dtype for dtype in NAMES.values() if multiplies(dtype, device)]
    stored = max(inventory.elements, key=inventory.elements.__getitem__, default=torch.float32)
    packed = inventory.packed_bytes > 0
    if device.type == "cpu" and (packed or multiplies_narrow(stored, torch.float32, device)):
        return torch.float32
    return stored if stored in order and not packed else order[0]


def choose_cache_dtype(
    asked: str, inventory: Inventory, dtype: torch.dtype, device: torch.device
) -> torch.dtype:
    """The dtype of keys and values where the user names none: that of activations. Where ``Auto``
    made these F32 on the CPU although the weights have fewer bits, F16: rounding weights has cost
    far more than that will, and decoding waits for as many bytes of a long context as of weights.

    Args:
        asked: as for `choose_dtype`, which gave ``dtype``.
    """
    narrow = inventory.packed_bytes > 0 or bool(inventory.kept)
    if asked_dtype(asked) is None and narrow and device.type == "cpu" and dtype is torch.float32:
        return torch.float16
    return dtype


def cache_dtype(asked: str) -> torch.dtype | None:
    """The dtype in which keys and values are stored; None for that of activations.

    Args:
        asked: a ``PagedCacheType`` or its name, in any case.

    Raises:
        ConfigError: no such type.
    """
    name = str(getattr(asked, "value", asked)).lower()
    known = NAMES | EIGHT_BIT
    if name != "auto" and name not in known:
        raise ConfigError(
            f"cache type {asked!r} is unknown; use Auto, {', '.join(n.upper() for n in known)}"
        )
    return known.get(name)


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
