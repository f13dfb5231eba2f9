"""The native encoders: where the library is and how it is called."""

from __future__ import annotations

import ctypes
import importlib.machinery
import os
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tramontane.errors import ConfigError
from tramontane_gguf.types import GgmlType

ENVIRONMENT = "TRAMONTANE_GGUF_ENCODER"
"""``torch`` does without the library, ``portable`` without AVX2; ``auto`` takes what is best."""

TYPES = frozenset({
    "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q8_1", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q8_k",
    "iq4_nl", "iq4_xs",
})  # fmt: skip
"""What the library encodes."""

_VERSION = 1


def threads() -> int:
    """Threads an encoder may use: torch's setting, or one where ``MISTRALRS_ISQ_SINGLETHREAD``
    asks for it, as in mistral.rs."""
    if os.environ.get("MISTRALRS_ISQ_SINGLETHREAD", "") not in ("", "0"):
        return 1
    return torch.get_num_threads()


def encode(values: Tensor, kind: GgmlType, importance: Tensor | None, out: Tensor) -> bool:
    """Encode rows of float32 into ``out``.

    Args:
        values: [rows, in], contiguous, on the CPU.
        importance: [in] float32, or None.
        out: [rows, bytes of a row] uint8, contiguous.

    Returns:
        False where the library is not there or not wanted; nothing has been written then.

    Raises:
        ConfigError: a value is not finite.
    """
    mode = os.environ.get(ENVIRONMENT, "auto").lower()
    if mode not in ("auto", "portable", "torch"):
        raise ConfigError(f"{ENVIRONMENT} is {mode!r}; use auto, portable or torch")
    library = None if mode == "torch" or kind.name not in TYPES else _library()
    if library is None:
        return False
    rows, columns = values.shape
    status = library.tgq_encode(
        kind.number,
        rows,
        columns,
        values.data_ptr(),
        None if importance is None else importance.data_ptr(),
        out.data_ptr(),
        threads(),
        mode == "portable",
    )
    if status == -3:
        raise ConfigError("the weight holds NaN or infinite values, which no block can encode")
    assert status == 0, status
    return True


@cache
def _library() -> Any:
    """The loaded library, or None."""
    folder = Path(__file__).parent
    names = [f"_encode{suffix}" for suffix in importlib.machinery.EXTENSION_SUFFIXES]
    path = next((folder / name for name in names if (folder / name).exists()), None)
    if path is None:
        return None
    try:
        # After torch, whose OpenMP runtime and threads it then shares.
        library = ctypes.CDLL(str(path))
        library.tgq_version.restype = library.tgq_encode.restype = ctypes.c_int64
    except (OSError, AttributeError):
        return None
    integer, long, pointer = ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p
    library.tgq_encode.argtypes = (integer, long, long, *[pointer] * 3, integer, integer)
    return library if library.tgq_version() == _VERSION else None
