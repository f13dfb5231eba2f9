"""The ``gguf`` weight format as a quantizer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import prod
from typing import Any

import gguf
import torch
from torch import Tensor

from tramontane.errors import ConfigError
from tramontane.protocols import PackedWeight
from tramontane_gguf.blocks import GgmlWeight
from tramontane_gguf.types import BY_NAME, GgmlType


class GgmlQuantizer:
    """Packs with the reference quantizers of the ``gguf`` package.

    That package encodes the legacy, ternary and plain types; K- and IQ-types it only decodes.
    """

    name = "gguf"

    def quantize(
        self, weight: Tensor, type_name: str, *, importance: Tensor | None = None
    ) -> GgmlWeight:
        """Pack ``weight`` [..., in], on the CPU.

        Raises:
            ConfigError: the type is unknown or cannot be encoded, its blocks do not divide the
                rows, or ``importance`` is given, which none of these encoders uses.
        """
        kind = ggml_type(type_name)
        if weight.ndim == 0 or weight.shape[-1] % kind.block_size:
            raise ConfigError(
                f"a weight of shape {list(weight.shape)} cannot be {kind.name}: rows must be "
                f"multiples of {kind.block_size}"
            )
        number = gguf.GGMLQuantizationType(kind.number)
        values = weight.detach().to("cpu", torch.float32).contiguous().numpy()
        try:
            packed = gguf.quantize(values, number)
        except NotImplementedError as cause:
            raise ConfigError(
                f"{kind.name} can be read but not encoded; encodable are {', '.join(ENCODABLE)}"
            ) from cause
        data = torch.from_numpy(packed.copy()).view(torch.uint8)
        return GgmlWeight(data, kind, weight.shape).to(weight.device)

    def packed_bytes(self, shape: Sequence[int], type_name: str) -> int | None:
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


_SHORT_K = re.compile(r"(q\d)k")

ENCODABLE = (
    "f32", "f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "tq1_0", "tq2_0", "mxfp4",
)  # fmt: skip
"""What `GgmlQuantizer.quantize` accepts."""
