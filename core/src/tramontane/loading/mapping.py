"""A weight file mapped into memory, and tensors that are views of it."""

from __future__ import annotations

import mmap
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from tramontane.errors import CheckpointError


class MappedFile:
    """One file, mapped copy-on-write.

    Tensors are views of the mapping and keep it alive; nothing is read before somebody touches
    it, and writing to such a tensor never reaches the file.

    Raises:
        CheckpointError: the file cannot be opened or is empty.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as cause:
            raise CheckpointError(f"{path} cannot be mapped: {cause}") from cause
        self.size = len(self._map)

    def read(self, start: int, stop: int) -> bytes:
        """A copy of bytes ``start:stop``."""
        return self._map[start:stop]

    def tensor(self, dtype: torch.dtype, shape: tuple[int, ...], offset: int) -> Tensor:
        """The contiguous tensor whose data begin at byte ``offset``.

        A view of the mapping; only data that lie at an address unfit for ``dtype`` are copied.

        Raises:
            CheckpointError: the data do not lie inside the file.
        """
        count = prod(shape)
        nbytes = count * dtype.itemsize
        if offset < 0 or offset + nbytes > self.size:
            raise CheckpointError(
                f"{self.path}: {nbytes} bytes at offset {offset} do not lie inside the file "
                f"of {self.size} bytes"
            )
        if not count:
            return torch.empty(shape, dtype=dtype)
        if offset % dtype.itemsize:
            raw = torch.frombuffer(self._map, dtype=torch.uint8, offset=offset, count=nbytes)
            return raw.clone().view(dtype).view(shape)
        return torch.frombuffer(self._map, dtype=dtype, offset=offset, count=count).view(shape)

    def release(self, start: int, stop: int) -> None:
        """Let the pages that lie wholly inside bytes ``start:stop`` leave memory.

        For data that have been copied elsewhere. The pages come back from the file when somebody
        touches them again.
        """
        if not hasattr(mmap, "MADV_DONTNEED"):
            return
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        last = stop // mmap.PAGESIZE * mmap.PAGESIZE
        if last > first:
            self._map.madvise(mmap.MADV_DONTNEED, first, last - first)
