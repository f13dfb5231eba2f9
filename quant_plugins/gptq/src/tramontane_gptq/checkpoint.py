"""What GPTQ and AWQ checkpoints have in common: names, and parts that become one weight."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from tramontane.errors import CheckpointError, ConfigError
from tramontane.nn import GroupAffineWeight
from tramontane.protocols import Checkpoint, CheckpointView, PackedWeight

PARTS = ("qweight", "qzeros", "scales")


class GroupedCheckpoint(CheckpointView, ABC):
    """``X.qweight``, ``X.qzeros`` and ``X.scales`` of the checkpoint below are ``X.weight``.

    Args:
        inner: the checkpoint as stored.
        bits: of a code.
        extra: further parts that may lie beside them.

    Raises:
        CheckpointError: a part is missing.
    """

    def __init__(self, inner: Checkpoint, bits: int, extra: Sequence[str] = ()) -> None:
        super().__init__(inner)
        self.bits = bits
        stored = set(inner.names())
        self._modules = {n.removesuffix(".qweight") for n in stored if n.endswith(".qweight")}
        for module in sorted(self._modules):
            missing = [part for part in PARTS if f"{module}.{part}" not in stored]
            if missing:
                raise CheckpointError(
                    f"the checkpoint has '{module}.qweight' but not '{module}.{missing[0]}'"
                )
        self._dropped = {f"{m}.{part}" for m in self._modules for part in (*PARTS, *extra)}
        self._stored = stored

    def names(self) -> Sequence[str]:
        kept = [name for name in self.inner.names() if name not in self._dropped]
        return [*(f"{module}.weight" for module in sorted(self._modules)), *kept]

    def tensor(self, name: str) -> Tensor | PackedWeight:
        module = self._module(name)
        if module is None:
            return self.inner.tensor(name)
        try:
            return self._weight(module)
        except ValueError as cause:
            raise CheckpointError(f"{name}: {cause}") from cause

    def packed_bytes(self, name: str) -> int | None:
        module = self._module(name)
        if module is None:
            return None
        codes, scales = self._part(module, "qweight"), self._part(module, "scales")
        return codes.nbytes + prod(scales.shape) * (scales.dtype.itemsize + 4)

    def release(self, name: str) -> None:
        module = self._module(name)
        super().release(name if module is None else f"{module}.qweight")

    @abstractmethod
    def _weight(self, module: str) -> GroupAffineWeight:
        """Raises ValueError for parts that do not fit each other."""

    def _module(self, name: str) -> str | None:
        module = name.removesuffix(".weight")
        return module if module != name and module in self._modules else None

    def _has(self, module: str, part: str) -> bool:
        return f"{module}.{part}" in self._stored

    def _part(self, module: str, part: str) -> Tensor:
        tensor = self.inner.tensor(f"{module}.{part}")
        if isinstance(tensor, PackedWeight) or (part.startswith("q") and not _is_words(tensor)):
            raise CheckpointError(f"{module}.{part} holds no 32-bit words in two dimensions")
        return tensor

    def _affine(
        self, codes: Tensor, scales: Tensor, zeros: Tensor, order: Tensor | None = None
    ) -> GroupAffineWeight:
        """``w = (code - zero) * scale``.

        Args:
            codes: streams of rows, [out, bytes].
            scales, zeros: [groups, out].
            order: see `GroupAffineWeight`.
        """
        if scales.shape != zeros.shape or not scales.dtype.is_floating_point:
            raise ValueError(
                f"scales {scales.dtype} {list(scales.shape)} and zeros {list(zeros.shape)} do not "
                f"belong together"
            )
        biases = -zeros.float() * scales.float()
        scales, biases = scales.T.contiguous(), biases.T.contiguous()
        return GroupAffineWeight(codes, scales, biases, bits=self.bits, order=order)


def setting(settings: Mapping[str, Any], key: str, allowed: Sequence[Any], default: Any) -> Any:
    """One of ``quantization_config``'s settings.

    Raises:
        ConfigError: a value that is not covered.
    """
    value = settings.get(key, default)
    if not any(value == choice and type(value) is type(choice) for choice in allowed):
        raise ConfigError(
            f"quantization_config.{key} is {value!r}; covered are "
            f"{', '.join(repr(choice) for choice in allowed)}"
        )
    return value


def _is_words(tensor: Tensor) -> bool:
    return tensor.dtype in (torch.int32, torch.uint32) and tensor.dim() == 2
