"""Names and numbers of UQFF, as mistral.rs defines them (``docs/UQFF/LAYOUT.md`` for generation 0,
``uqff-format.md`` for generation 1)."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum

import torch

SUFFIX = ".uqff"
RESIDUAL = "residual.safetensors"
REPORT = "uqff_report.json"

VERSION = (1, 2, 0)
VERSION_KEYS = ("uqff.version.major", "uqff.version.minor", "uqff.version.patch")
NEWEST_GEN0 = (0, 2)
"""Major and minor version of the last writer of generation 0."""

MAX_DIMS = 4
MAX_SHARD_BYTES = 10 * 2**30


class Kind(IntEnum):
    """How a weight is stored; the value of ``X.weight.format``, and of a blob's fifth byte."""

    GGUF = 0
    UNQUANT = 1
    HQQ = 2
    FP8 = 3
    AFQ = 4
    F8Q8 = 5
    MXFP4 = 6


FLOATS = (torch.float32, torch.float16, torch.bfloat16)
U8, U32, F8 = (torch.uint8,), (torch.uint32,), (torch.float8_e4m3fn,)

TENSORS: Mapping[Kind, Mapping[str, tuple[torch.dtype, ...]]] = {
    Kind.GGUF: {"": U8},
    Kind.UNQUANT: {"": FLOATS},
    Kind.HQQ: {"": U8, "scales": (torch.float32,), "zeros": (torch.float32,)},
    Kind.FP8: {"": F8},
    Kind.AFQ: {"": U32, "scales": FLOATS, "biases": FLOATS},
    Kind.F8Q8: {"": U8},
    Kind.MXFP4: {"": U8, "scales": U8},
}
"""Parts of each kind that are tensors, with the dtypes they may have; ``""`` is the weight."""

SCALARS: Mapping[Kind, Mapping[str, torch.dtype]] = {
    Kind.GGUF: {"dtype": torch.uint32},
    Kind.UNQUANT: {},
    Kind.HQQ: {
        "bits": torch.uint8, "group_size": torch.uint32, "axis": torch.uint8,
        "optimization_steps": torch.uint32, "round_zeros": torch.uint8,
        "channel_wise": torch.uint8,
    },
    Kind.FP8: {
        "dequant_w_scale": torch.float32, "dequant_x_scale": torch.float32,
        "quant_scale": torch.float32, "dtype": torch.uint32,
    },
    Kind.AFQ: {"bits": torch.uint8, "group_size": torch.uint8},
    Kind.F8Q8: {"num_blocks": torch.uint32},
    Kind.MXFP4: {},
}  # fmt: skip
"""Parts that are single numbers."""

SHAPED = (Kind.GGUF, Kind.HQQ, Kind.F8Q8)
"""Kinds with a part ``shape``, a list of numbers."""

DTYPES: Mapping[int, torch.dtype] = {
    0: torch.uint8, 1: torch.uint32, 2: torch.int32, 3: torch.int64, 4: torch.float16,
    5: torch.bfloat16, 6: torch.float32, 7: torch.float64, 8: torch.int16,
    9: torch.float8_e4m3fn,
}  # fmt: skip
"""Dtype codes of both generations. The codes 10 to 13, floats of 4 and 6 bits and E8M0, name
dtypes that no file holds data of."""
