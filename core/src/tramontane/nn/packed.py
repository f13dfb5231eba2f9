"""Modules over weights that stay packed in memory. The loader puts them in place of plain ones."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from tramontane.kernels import dispatch
from tramontane.kernels.reference import packed_linear
from tramontane.protocols.quantizer import PackedWeight


class PackedLinear(nn.Module):
    """``nn.Linear`` over a packed weight.

    Args:
        packed: weight of shape (out, in).
        bias: [out] or None.

    Attributes:
        operand: the weight in the form that the kernel in use multiplies with.
    """

    def __init__(self, packed: PackedWeight, bias: Tensor | None = None) -> None:
        super().__init__()
        self.packed = packed
        self.out_features, self.in_features = packed.shape
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self._multiply: dispatch.Operator = packed_linear
        self.operand: Any = packed

    def bind_kernels(self, device: torch.device, dtype: torch.dtype) -> None:
        """Choose the kernel for this format for good."""
        self._multiply = dispatch.bind(
            "packed_linear", device, dtype=dtype, format=self.packed.format, **self.packed.facts
        )
        self.operand = dispatch.prepare(self._multiply, self.packed)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self._multiply(x, self.operand, self.bias)  # [..., out]
        return h

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self.packed.format}"


class PackedEmbedding(nn.Module):
    """``nn.Embedding`` over a packed weight; only the rows asked for are de-quantized.

    Args:
        packed: weight of shape (vocab, hidden).
        dtype: type of the result.
    """

    def __init__(self, packed: PackedWeight, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.packed = packed
        self.dtype = dtype
        self.num_embeddings, self.embedding_dim = packed.shape

    def forward(self, token_ids: Tensor) -> Tensor:
        rows = self.packed.gather(token_ids.flatten(), self.dtype)
        return rows.view(*token_ids.shape, self.embedding_dim)  # [..., hidden]

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, {self.packed.format}"


class PackedStack(PackedWeight):
    """Weights of one format and shape, one an expert, as a stack; each stays where it is.

    Args:
        parts: at least one weight of shape (out, in).
    """

    def __init__(self, parts: Sequence[PackedWeight]) -> None:
        first = parts[0]
        for part in parts:
            if (part.format, part.shape) != (first.format, first.shape):
                raise ValueError(
                    f"a stack of {first.format} {first.shape} cannot hold {part.format} "
                    f"{part.shape}"
                )
        self.parts = tuple(parts)
        self.format = first.format
        self.shape = (len(parts), *first.shape)

    @property
    def facts(self) -> Mapping[str, Hashable]:
        return self.parts[0].facts

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    @property
    def device(self) -> torch.device:
        return self.parts[0].device

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.stack([part.dequantize(dtype) for part in self.parts])

    def rows(self, start: int, stop: int) -> Self:
        return type(self)(self.parts[start:stop])

    def expert(self, index: int) -> PackedWeight:
        return self.parts[index]

    def gather(self, index: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.stack([self.parts[i].dequantize(dtype) for i in index.tolist()])

    def to(self, device: torch.device) -> Self:
        return type(self)([part.to(device) for part in self.parts])

    @classmethod
    def concat(cls, parts: Sequence[Self]) -> Self:
        return cls([part for stack in parts for part in stack.parts])


class PackedExpertLinear(nn.Module):
    """`tramontane.nn.ExpertLinear` over a packed stack.

    Args:
        packed: weight of shape (experts, out, in).
        bias: [experts, out] or None.

    Attributes:
        operands: each expert's weight in the form that the kernel in use multiplies with.
    """

    def __init__(self, packed: PackedWeight, bias: Tensor | None = None) -> None:
        super().__init__()
        self.packed = packed
        self.num_experts, self.out_features, self.in_features = packed.shape
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.operands: list[Any] = [packed.expert(e) for e in range(self.num_experts)]
        self._multiply: dispatch.Operator = packed_linear

    def bind_kernels(self, device: torch.device, dtype: torch.dtype) -> None:
        """Choose the kernel for this format for good."""
        self._multiply = dispatch.bind(
            "packed_linear", device, dtype=dtype, format=self.packed.format, **self.packed.facts
        )
        parts = [self.packed.expert(e) for e in range(self.num_experts)]
        self.operands = [dispatch.prepare(self._multiply, part) for part in parts]

    def forward(self, x: Tensor, index: int) -> Tensor:
        """``x`` [n, in] through expert ``index``: [n, out]."""
        bias = None if self.bias is None else self.bias[index]
        h: Tensor = self._multiply(x, self.operands[index], bias)
        return h

    def extra_repr(self) -> str:
        return (
            f"{self.num_experts} x ({self.in_features}, {self.out_features}, {self.packed.format})"
        )
