"""`GgmlWeight`: a tensor that stays in ggml blocks."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import Tensor

from tramontane.protocols import PackedWeight
from tramontane_gguf.dequantize import DECODERS
from tramontane_gguf.types import BY_NAME, GgmlType

# Elements decoded at a time: temporaries stay in a core's cache, or fill a GPU.
_CHUNK_CPU = 1 << 18
_CHUNK_DEVICE = 1 << 24


class GgmlWeight(PackedWeight):
    """Raw blocks of one ggml type.

    Attributes:
        format: ``"gguf."`` and the lower-case ggml type name, ``"gguf.q4_k"``.
        shape: logical shape, torch order.
        type: the ggml type.
        mapped: whether ``stored`` is such a view, which nobody writes to.
        order: [N]: row i of the weight is row ``order[i]`` of ``stored``, on the first axis; None
            where the two agree.

    Raises:
        ValueError: rows are not whole blocks, or ``blocks`` does not have that many bytes.
    """

    def __init__(
        self,
        blocks: Tensor,
        kind: GgmlType,
        shape: Sequence[int],
        *,
        mapped: bool = False,
        order: Tensor | None = None,
    ) -> None:
        shape = tuple(shape)
        if not shape or shape[-1] % kind.block_size:
            raise ValueError(
                f"shape {list(shape)} does not have rows of whole {kind.name} blocks "
                f"of {kind.block_size}"
            )
        row_bytes = shape[-1] // kind.block_size * kind.type_size
        if blocks.dtype != torch.uint8:
            raise ValueError(f"blocks must be bytes, not {blocks.dtype}")
        if blocks.numel() != row_bytes * _product(shape[:-1]):
            raise ValueError(
                f"{kind.name} blocks of shape {list(shape)} take "
                f"{row_bytes * _product(shape[:-1])} bytes, not {blocks.numel()}"
            )
        self.type = kind
        self.format = f"gguf.{kind.name}"
        self.shape = shape
        self._stored: Tensor | None = blocks.view(*shape[:-1], row_bytes)
        self._restore: Callable[[Tensor], Tensor] | None = None
        self._row_bytes, self._device = row_bytes, blocks.device
        self.mapped = mapped
        self.order = order
        if order is not None:
            self.shape = (order.shape[0], *shape[1:])
            if order.numel() and not 0 <= int(order.min()) <= int(order.max()) < shape[0]:
                raise ValueError(f"the order of rows names some beyond the {shape[0]} there are")

    @classmethod
    def from_name(cls, blocks: Tensor, type_name: str, shape: Sequence[int]) -> Self:
        """The same from a type name, ``"q4_k"``. Raises KeyError for a name ggml lacks."""
        return cls(blocks, BY_NAME[type_name], shape)

    @property
    def stored(self) -> Tensor:
        """[*shape[:-1], bytes of a row] uint8, as in the file; often a view of its mapping. Made
        anew on each use once it was released."""
        if self._stored is not None:
            return self._stored
        return self._released_rows(torch.arange(self.shape[0]))

    @property
    def blocks(self) -> Tensor:
        """The rows' bytes, [*shape[:-1], bytes of a row]: as stored, or a copy in their order."""
        stored = self.stored
        return stored if self.order is None else stored.index_select(0, self.order)

    def __repr__(self) -> str:
        return f"GgmlWeight({self.format}, shape={list(self.shape)}, device={self.device})"

    @property
    def nbytes(self) -> int:
        return _product(self.shape[:-1]) * self._row_bytes

    @property
    def device(self) -> torch.device:
        return self._device

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return _decoded(self.blocks, self.type, dtype).view(self.shape)

    def rows(self, start: int, stop: int) -> Self:
        if self.order is not None:
            return self._reordered(self.order[start:stop])
        if self._stored is None:
            part = self._released_rows(torch.arange(self.shape[0])[start:stop])
        else:
            part = self._stored[start:stop]
        shape = (part.shape[0], *self.shape[1:])
        return type(self)(part, self.type, shape, mapped=self.mapped)

    def release(self, restore: Callable[[Tensor], Tensor] | None = None) -> None:
        """See `tramontane.protocols.PackedWeight.release`. Pages of a mapped file leave memory, and
        come back from the file when somebody touches them again. A matrix in memory that is its
        own, not a view of a stack, is given up."""
        stored = self._stored
        if stored is None:
            return
        if not self.mapped:
            own = stored.untyped_storage().nbytes() == stored.nbytes
            if restore is not None and own and len(self.shape) == 2:
                self._stored, self._restore, self.order = None, restore, None
            return
        if not hasattr(mmap, "MADV_DONTNEED"):
            return
        page = mmap.PAGESIZE
        first = -(-stored.data_ptr() // page) * page
        last = (stored.data_ptr() + stored.nbytes) // page * page
        if last > first:
            # Advice: where it is not taken, nothing is lost but memory.
            madvise = ctypes.CDLL(None).madvise
            madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
            madvise(first, last - first, mmap.MADV_DONTNEED)

    def gather(self, index: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        places = self._places(index)
        if self._stored is None:
            chosen = self._released_rows(places)
        else:
            chosen = self._stored.index_select(0, places)
        return _decoded(chosen, self.type, dtype).view(-1, *self.shape[1:])

    def select(self, order: Tensor) -> Self:
        """Rows ``order`` [N] of the first axis, still packed; shares memory.

        Raises:
            ValueError: there is no such row.
        """
        if order.numel() and not 0 <= int(order.min()) <= int(order.max()) < self.shape[0]:
            raise ValueError(f"{self!r} does not have all the rows that are asked for")
        return self._reordered(self._places(order))

    def _places(self, index: Tensor) -> Tensor:
        """Where rows ``index`` are stored."""
        index = index.to(self.device)
        return index if self.order is None else self.order[index]

    def _reordered(self, order: Tensor) -> Self:
        stored = self.stored
        shape = (stored.shape[0], *self.shape[1:])
        return type(self)(stored, self.type, shape, mapped=self.mapped, order=order)

    def _released_rows(self, index: Tensor) -> Tensor:
        assert self._restore is not None
        return self._restore(index)

    def to(self, device: torch.device) -> Self:
        if self.device == torch.device(device):
            return self
        return type(self)(self.blocks.to(device), self.type, self.shape)

    @classmethod
    def concat(cls, parts: Sequence[Self]) -> Self:
        if not parts:
            raise ValueError("there is nothing to concatenate")
        first = parts[0]
        for part in parts[1:]:
            if part.format != first.format or part.shape[1:] != first.shape[1:]:
                raise ValueError(f"{part!r} cannot follow {first!r} in one weight")
        blocks = torch.cat([part.blocks for part in parts])
        return cls(blocks, first.type, (blocks.shape[0], *first.shape[1:]))


def _product(sizes: Sequence[int]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total


def _decoded(blocks: Tensor, kind: GgmlType, dtype: torch.dtype) -> Tensor:
    """Bytes to ``dtype``, flat, a bounded number of blocks at a time."""
    if kind.dtype is not None:
        return plain(blocks, kind.dtype).to(dtype)
    flat = blocks.reshape(-1, kind.type_size)
    decode = DECODERS[kind.name]
    step = (_CHUNK_CPU if blocks.device.type == "cpu" else _CHUNK_DEVICE) // kind.block_size
    if flat.shape[0] <= step:
        return decode(flat).to(dtype)
    out = torch.empty(flat.shape[0], kind.block_size, dtype=dtype, device=blocks.device)
    for start in range(0, flat.shape[0], step):
        out[start : start + step] = decode(flat[start : start + step])
    return out


def plain(data: Tensor, dtype: torch.dtype) -> Tensor:
    """Bytes seen as ``dtype``: a view where they are aligned for it, else a copy."""
    if data.data_ptr() % dtype.itemsize or data.storage_offset() % dtype.itemsize:
        data = data.clone()
    return data.view(dtype)
