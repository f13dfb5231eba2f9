"""The ``gguf`` weight format as a quantizer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import gguf
import torch
from torch import Tensor

from tramontane.errors import ConfigError
from tramontane.protocols import PackedWeight, joined_parts
from tramontane_gguf import native
from tramontane_gguf.blocks import GgmlWeight
from tramontane_gguf.encode import ENCODERS
from tramontane_gguf.types import BY_NAME, BY_NUMBER, GgmlType

_CHUNK = 1 << 19
"""Elements converted to float32 at a time: few enough to stay in a cache."""

_CHUNK_DEVICE = 1 << 24

_BY_PACKAGE = ("tq1_0", "tq2_0", "mxfp4")
"""Types that the ``gguf`` package encodes and this one does not."""

ENCODABLE = ("f32", "f16", "bf16", *ENCODERS, *_BY_PACKAGE)
"""What `GgmlQuantizer.quantize` accepts."""

_SHORT_K = re.compile(r"(q\d)k")


class GgmlQuantizer:
    """Packs weights in ggml blocks. See `tramontane.protocols.Quantizer`."""

    name = "gguf"

    def quantize(
        self, weight: Tensor, type_name: str, *, importance: Tensor | None = None
    ) -> GgmlWeight:
        """Pack ``weight`` [..., in].

        Raises:
            ConfigError: the type is unknown or cannot be encoded, its blocks do not divide the
                rows, values are not finite, or ``importance`` does not fit.
        """
        kind = ggml_type(type_name)
        if weight.ndim == 0 or weight.shape[-1] % kind.block_size:
            raise ConfigError(
                f"a weight of shape {list(weight.shape)} cannot be {kind.name}: rows must be "
                f"multiples of {kind.block_size}"
            )
        if kind.name not in ENCODABLE:
            raise ConfigError(
                f"{kind.name} can be read but not encoded; encodable are {', '.join(ENCODABLE)}"
            )
        weight = weight.detach()
        if kind.dtype is not None:
            data = weight.to(kind.dtype).contiguous().view(torch.uint8)
            return GgmlWeight(data, kind, weight.shape)
        width = weight.shape[-1]
        row_bytes = width // kind.block_size * kind.type_size
        blocks = torch.empty(*weight.shape[:-1], row_bytes, dtype=torch.uint8, device=weight.device)
        for values, out, counts in _parts(weight, blocks, _checked(importance, weight)):
            _encode(values, kind, counts, out)
        return GgmlWeight(blocks, kind, weight.shape)

    def packed_bytes(self, shape: Sequence[int], type_name: str) -> int | None:
        """See `tramontane.protocols.Quantizer.packed_bytes`."""
        kind = ggml_type(type_name)
        if not shape or shape[-1] % kind.block_size:
            return None
        return prod(shape) // kind.block_size * kind.type_size

    def serialize(self, weight: PackedWeight) -> dict[str, Any]:
        """``data`` (the raw blocks, uint8), ``dtype`` (ggml type number) and ``shape``."""
        if not isinstance(weight, GgmlWeight):
            raise ConfigError(f"{weight.format} is not a ggml format")
        return {
            "data": weight.blocks.reshape(-1),
            "dtype": weight.type.number,
            "shape": weight.shape,
        }

    def deserialize(self, parts: Mapping[str, Any]) -> GgmlWeight:
        """See `tramontane.protocols.Quantizer.deserialize`."""
        with joined_parts("ggml"):
            kind = BY_NUMBER.get(parts["dtype"])
            if kind is None:
                raise ValueError(f"{parts['dtype']!r} is the number of no ggml type")
            return GgmlWeight(parts["data"], kind, parts["shape"])


def ggml_type(name: str) -> GgmlType:
    """The type of that name, ``"q4_k"``; ``"q4k"`` is the same.

    Raises:
        ConfigError: there is no such type.
    """
    lowered = name.lower()
    kind = BY_NAME.get(lowered) or BY_NAME.get(_SHORT_K.sub(r"\1_k", lowered))
    if kind is None:
        raise ConfigError(f"{name!r} is no ggml type; there are {', '.join(sorted(BY_NAME))}")
    return kind


def _checked(importance: Tensor | None, weight: Tensor) -> Tensor | None:
    """Importances as float32 [stacks, in], where there are any that tell columns apart."""
    if importance is None:
        return None
    width = weight.shape[-1]
    if importance.shape not in ((width,), (*weight.shape[:-2], width)):
        raise ConfigError(
            f"importances of shape {list(importance.shape)} do not fit a weight of shape "
            f"{list(weight.shape)}"
        )
    counts = importance.detach().to(weight.device, torch.float32)
    if not bool((counts.isfinite() & (counts >= 0)).all()):
        raise ConfigError("importances must be finite and not negative")
    stacks = prod(weight.shape[:-2])
    return counts.expand(stacks, width).contiguous() if counts.dim() == 1 else counts.contiguous()


def _parts(weight: Tensor, blocks: Tensor, counts: Tensor | None) -> Any:
    """Rows, their place, and the importances of their columns, a bounded number at a time."""
    width = weight.shape[-1]
    stacked = weight.reshape(-1, *weight.shape[-2:]) if weight.dim() > 2 else weight[None]
    placed = blocks.view(stacked.shape[0], -1, blocks.shape[-1])
    rows = stacked.reshape(stacked.shape[0], -1, width)
    chunk = _CHUNK if weight.device.type == "cpu" else _CHUNK_DEVICE
    step = max(chunk // max(width, 1), 1)
    for index in range(rows.shape[0]):
        own = None if counts is None else counts[index]
        # An expert that no token reached has nothing to say of its columns.
        own = None if own is not None and not bool(own.any()) else own
        for start in range(0, rows.shape[1], step):
            part = slice(start, start + step)
            yield rows[index, part].float().contiguous(), placed[index, part], own


def _encode(values: Tensor, kind: GgmlType, importance: Tensor | None, out: Tensor) -> None:
    if values.device.type == "cpu" and native.encode(values, kind, importance, out):
        return
    if not bool(values.isfinite().all()):
        raise ConfigError("the weight holds NaN or infinite values, which no block can encode")
    if kind.name in _BY_PACKAGE:
        packed = gguf.quantize(values.cpu().numpy(), gguf.GGMLQuantizationType(kind.number))
        out.copy_(torch.from_numpy(packed.copy()).view(torch.uint8).view(out.shape))
        return
    flat = values.view(-1, kind.block_size)
    counts = None
    if importance is not None:
        counts = importance.expand_as(values).reshape(flat.shape)
    out.copy_(ENCODERS[kind.name](flat, counts).view(out.shape))
