"""A Hugging Face checkpoint whose MXFP4 weights come packed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from tramontane.errors import CheckpointError
from tramontane.protocols import Checkpoint, CheckpointView, PackedWeight
from tramontane_mxfp4.weight import Mxfp4Weight

_PARTS = ("_blocks", "_scales")


class Mxfp4Checkpoint(CheckpointView):
    """``X_blocks`` and ``X_scales`` of the checkpoint below are one weight ``X``.

    Args:
        inner: the checkpoint as stored.

    Raises:
        CheckpointError: one of the two parts is missing.
    """

    def __init__(self, inner: Checkpoint) -> None:
        super().__init__(inner)
        stored = set(inner.names())
        blocks, scales = (
            {n.removesuffix(end) for n in stored if n.endswith(end)} for end in _PARTS
        )
        for stem in sorted(blocks ^ scales):
            there, missing = _PARTS if stem in blocks else reversed(_PARTS)
            raise CheckpointError(
                f"the checkpoint has {stem + there!r} but not {stem + missing!r}; an MXFP4 weight "
                f"needs both"
            )
        both = sorted(blocks & stored)
        if both:
            raise CheckpointError(f"the checkpoint has {both[0]!r} both packed and plain")
        self._packed = blocks
        self._open = True

    def names(self) -> Sequence[str]:
        parts = {stem + end for stem in self._packed for end in _PARTS}
        return [*sorted(self._packed), *(n for n in self.inner.names() if n not in parts)]

    def tensor(self, name: str) -> Tensor | PackedWeight:
        if name not in self._packed:
            return self.inner.tensor(name)
        codes, scales = (self.inner.tensor(name + end) for end in _PARTS)
        if isinstance(codes, PackedWeight) or isinstance(scales, PackedWeight):
            raise CheckpointError(f"{name}: the parts of an MXFP4 weight are packed themselves")
        try:
            return Mxfp4Weight(codes, scales, on_release=partial(self.release, name))
        except ValueError as cause:
            raise CheckpointError(f"{name}: {cause}") from cause

    def release(self, name: str) -> None:
        for part in (name + end for end in _PARTS) if name in self._packed else (name,):
            if self._open:  # weights outlive the checkpoint
                super().release(part)

    def close(self) -> None:
        self._open = False
        super().close()
