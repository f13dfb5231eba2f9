"""Weights that stay packed in memory, and the formats that pack them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, Self

import torch
from torch import Tensor

from tramontane.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from tramontane.protocols.checkpoint import Checkpoint


class PackedWeight(ABC):
    """A weight in some quantized format, as stored: immutable data plus the way to read it.

    `tramontane.nn.PackedLinear` multiplies with it. A kernel that knows ``format`` may take the
    raw blocks; everything else goes through `dequantize`.

    Attributes:
        format: name of quantizer and type, ``"gguf.q4_k"``; what kernels are chosen by.
        shape: logical shape in torch order, ``(out_features, in_features)`` or
            ``(experts, out_features, in_features)``.
    """

    format: str
    shape: tuple[int, ...]

    @property
    def facts(self) -> Mapping[str, Hashable]:
        """What a kernel must know beside ``format`` before it can say whether it multiplies with
        this weight; nothing for most formats. Those whose numbers share scales in groups give:

        * ``bits``: of a code.
        * ``group_size``: numbers of a group.
        * ``groups``: ``"columns"`` for neighbours in a row, ``"rows"`` for numbers of one column
          in equally distant rows, ``"scattered"`` for neither.
        * ``columns``: of the weight.

        Plain floats of few bits may give ``exact``: their activations must not be rounded.

        One whose groups are of columns may have a method ``affine()``, which gives it as a
        `tramontane.nn.GroupAffineWeight`.
        """
        return {}

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes held, all parts together."""

    @property
    @abstractmethod
    def device(self) -> torch.device: ...

    @abstractmethod
    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The whole weight as a plain tensor of ``shape``."""

    @abstractmethod
    def rows(self, start: int, stop: int) -> Self:
        """Rows ``start:stop`` of the first axis; shares memory."""

    def part(self, rows: slice, axis: int = 0) -> PackedWeight:
        """The rows of ``axis`` that ``rows`` picks; shares memory. Formats whose blocks allow it
        offer more than neighbouring rows of the first axis. Raises ValueError for the others."""
        if axis or rows.step not in (None, 1):
            raise ValueError(f"{self.format} can be cut into neighbouring rows of its first axis")
        start, stop, _ = rows.indices(self.shape[0])
        return self.rows(start, stop)

    @abstractmethod
    def gather(self, index: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """De-quantized rows ``index`` [N] of the first axis: [N, *shape[1:]]. For embeddings
        and for picking experts."""

    @abstractmethod
    def to(self, device: torch.device) -> Self:
        """The same weight on another device; itself when already there."""

    def release(self, restore: Callable[[Tensor], Any]) -> None:  # noqa: B027 - most keep theirs
        """A kernel holds the weight in a form of its own, so that its format may let go of its
        memory, if it can get it back; none does unless it says so.

        Args:
            restore: gives rows ``index`` [N] of a matrix in the parts that the format consists of,
                exactly as they were. May be called at any time from now on.
        """

    def expert(self, index: int) -> PackedWeight:
        """One entry of a stack of shape (experts, out, in): shape (out, in) or (1, out, in);
        shares memory."""
        return self.rows(index, index + 1)

    @classmethod
    @abstractmethod
    def concat(cls, parts: Sequence[Self]) -> Self:
        """One weight whose first axis is the parts' rows in order. Raises ValueError when the
        formats differ."""


class Quantizer(Protocol):
    """A weight format plug-in."""

    name: str

    def quantize(
        self, weight: Tensor, type_name: str, *, importance: Tensor | None = None
    ) -> PackedWeight:
        """Pack ``weight`` [out, in].

        Args:
            weight: float tensor, any float dtype; a stack of experts has a third axis in front.
            type_name: a type of this format, e.g. ``"q4_k"``, or one of its ``isq_aliases``; in
                any case.
            importance: [in] mean squared activation of each column, [experts, in] for a stack, or
                None. A format without use for it ignores it.

        Raises:
            ConfigError: the shape does not fit the format's blocks.
        """
        ...

    def packed_bytes(self, shape: Sequence[int], type_name: str) -> int | None:
        """Bytes that a weight of ``shape`` takes as ``type_name``; None where the format's blocks
        do not divide its rows. In-situ quantization asks before anything is read."""
        ...

    def serialize(self, weight: PackedWeight) -> dict[str, Any]:
        """Parts of ``weight`` as plain tensors and numbers, for UQFF and GGUF writers."""
        ...

    def deserialize(self, parts: Mapping[str, Any]) -> PackedWeight:
        """The weight that `serialize` took apart; shares memory with the parts where it can.

        Raises:
            CheckpointError: a part is absent, or of a dtype or shape that does not fit the others.
        """
        ...


@contextmanager
def joined_parts(name: str) -> Iterator[None]:
    """Around the work of `Quantizer.deserialize`: a part that is absent or does not fit becomes a
    CheckpointError.

    Args:
        name: of the format.
    """
    try:
        yield
    except KeyError as cause:
        raise CheckpointError(f"{name} parts lack {cause}") from cause
    except ValueError as cause:
        raise CheckpointError(f"{name} parts do not fit: {cause}") from cause


def check_group_size(found: int, parts: Mapping[str, Any]) -> None:
    """Raises ValueError where ``group_size`` of the parts is not what their shapes make it."""
    if found != int(parts["group_size"]):
        raise ValueError(
            f"scales are given for groups of {found}, group_size says {parts['group_size']}"
        )


class QuantizedCheckpoints(Protocol):
    """What the quantizer of a `QuantizerSpec` with ``hf_methods`` also is."""

    def read_checkpoint(self, checkpoint: Checkpoint, settings: Mapping[str, Any]) -> Checkpoint:
        """A view of ``checkpoint`` whose weights of this format come packed.

        Its ``names`` are those of the unquantized model: scales, zero points and the like are
        part of the weight they belong to. See `tramontane.protocols.CheckpointView`.

        Args:
            checkpoint: safetensors as stored, with all their parts.
            settings: ``quantization_config`` of the model.

        Raises:
            ConfigError: a setting that the format does not cover, by key.
            CheckpointError: parts are missing, or of a wrong shape or dtype.
        """
        ...


class ReadOnlyQuantizer:
    """The half of a `Quantizer` that formats share which other tools write and only
    `QuantizedCheckpoints.read_checkpoint` opens. Subclasses name themselves."""

    name: str

    def quantize(
        self, weight: Tensor, type_name: str, *, importance: Tensor | None = None
    ) -> PackedWeight:
        """Raises ConfigError."""
        raise self._refusal()

    def packed_bytes(self, shape: Sequence[int], type_name: str) -> int | None:
        """None: nothing is packed to this format."""
        return None

    def serialize(self, weight: PackedWeight) -> dict[str, Any]:
        """Raises ConfigError."""
        raise self._refusal()

    def deserialize(self, parts: Mapping[str, Any]) -> PackedWeight:
        """Raises ConfigError."""
        raise self._refusal()

    def _refusal(self) -> ConfigError:
        return ConfigError(
            f"{self.name} checkpoints are read, not made; quantize to another type, such as Q4K"
        )
