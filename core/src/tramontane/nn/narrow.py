"""Linears whose weights keep the narrow float type of their file under wider activations."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tramontane.kernels import dispatch
from tramontane.kernels.reference import packed_linear
from tramontane.nn.moe import ExpertLinear
from tramontane.protocols.quantizer import PackedWeight

_NAMES = {torch.bfloat16: "bf16", torch.float16: "f16"}


class PlainWeight(PackedWeight):
    """A matrix of floats, for kernels that read it as it is.

    Attributes:
        format: ``"plain.bf16"`` or ``"plain.f16"``.
        values: [out, in].
        exact: whether a kernel must not round activations to the type of ``values``.
    """

    def __init__(self, values: Tensor, exact: bool = False) -> None:
        self.exact = exact
        self.format = f"plain.{_NAMES[values.dtype]}"
        self.shape = tuple(values.shape)
        self.values = values

    @property
    def facts(self) -> Mapping[str, Hashable]:
        """See `tramontane.protocols.PackedWeight.facts`."""
        return {"exact": True} if self.exact else {}

    @property
    def blocks(self) -> Tensor:
        """The values' bytes, flat."""
        return self.values.contiguous().view(-1).view(torch.uint8)

    @property
    def nbytes(self) -> int:
        return self.values.nbytes

    @property
    def device(self) -> torch.device:
        return self.values.device

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.values.to(dtype)

    def rows(self, start: int, stop: int) -> Self:
        return type(self)(self.values[start:stop], self.exact)

    def gather(self, index: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.values.index_select(0, index.to(self.device)).to(dtype)

    def to(self, device: torch.device) -> Self:
        if self.device == torch.device(device):
            return self
        return type(self)(self.values.to(device), self.exact)

    @classmethod
    def concat(cls, parts: Sequence[Self]) -> Self:
        if len({part.format for part in parts}) != 1:
            raise ValueError("parts of one weight must have one format")
        return cls(torch.cat([part.values for part in parts]), any(part.exact for part in parts))


class NarrowLinear(nn.Linear):
    """``nn.Linear`` over a BF16 or F16 weight that multiplies wider activations, so that a model
    computed in float32 takes the memory, and at one token the time, of its file.

    Args:
        weight: [out, in].
        bias: [out] in the type of the activations, or None.
        exact: keep activations as wide as they are. Otherwise a kernel may round them to the
            weight's type, as kernels round them for packed weights.

    Attributes:
        operand: the weight in the form that the kernel in use multiplies with.
    """

    def __init__(
        self, weight: nn.Parameter, bias: nn.Parameter | None, exact: bool = False
    ) -> None:
        nn.Module.__init__(self)
        self.exact = exact
        self.out_features, self.in_features = weight.shape
        self.weight = weight
        self.register_parameter("bias", bias)
        self.operand: Any = None
        self._multiply: dispatch.Operator | None = None

    def bind_kernels(self, device: torch.device, dtype: torch.dtype) -> None:
        """Choose the kernel for this type for good."""
        plain = PlainWeight(self.weight.detach(), self.exact)
        self._multiply = dispatch.bind("packed_linear", device, dtype=dtype, format=plain.format)
        self.operand = dispatch.prepare(self._multiply, plain)

    def forward(self, x: Tensor) -> Tensor:
        if self._multiply is None:
            return F.linear(x, self.weight.to(x.dtype), self.bias)
        h: Tensor = self._multiply(x, self.operand, self.bias)  # [..., out]
        return h


class NarrowExpertLinear(ExpertLinear):
    """`tramontane.nn.ExpertLinear` over BF16 or F16 weights that multiplies wider activations.

    Args:
        weight: [experts, out, in].
        bias: [experts, out] in the type of the activations, or None.
        exact: as for `NarrowLinear`.

    Attributes:
        operands: each expert's weight in the form that the kernel in use multiplies with.
    """

    def __init__(
        self, weight: nn.Parameter, bias: nn.Parameter | None, exact: bool = False
    ) -> None:
        nn.Module.__init__(self)
        self.exact = exact
        self.num_experts, self.out_features, self.in_features = weight.shape
        self.weight = weight
        self.register_parameter("bias", bias)
        self.operands: list[Any] = []
        self._multiply: dispatch.Operator | None = None

    def bind_kernels(self, device: torch.device, dtype: torch.dtype) -> None:
        """Choose the kernel for this type for good."""
        parts = [PlainWeight(expert, self.exact) for expert in self.weight.detach()]
        kind = parts[0].format
        self._multiply = dispatch.bind("packed_linear", device, dtype=dtype, format=kind)
        self.operands = [dispatch.prepare(self._multiply, part) for part in parts]

    def forward(self, x: Tensor, index: int) -> Tensor:
        bias = None if self.bias is None else self.bias[index]
        if self._multiply is None:
            return F.linear(x, self.weight[index].to(x.dtype), bias)
        h: Tensor = self._multiply(x, self.operands[index], bias)  # [n, out]
        return h


def multiplies_narrow(stored: torch.dtype, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a kernel multiplies activations of ``dtype`` with weights of ``stored`` as they are;
    torch would have to convert them at each step."""
    if dtype is not torch.float32 or stored not in _NAMES:
        return False
    kernel = dispatch.bind("packed_linear", device, dtype=dtype, format=f"plain.{_NAMES[stored]}")
    return kernel is not packed_linear
