"""Giving memory back to the system once a model has gone."""

from __future__ import annotations

import ctypes
import gc
import traceback
from contextlib import suppress


def forget_frames(error: BaseException) -> None:
    """Clear the variables of the frames that ``error`` came through. Whoever keeps the error would
    keep the half-loaded model too; the traceback itself stays readable."""
    seen: BaseException | None = error
    while seen is not None:
        traceback.clear_frames(seen.__traceback__)
        seen = seen.__cause__ or seen.__context__


def trim() -> None:
    """Collect garbage and hand free heap pages back.

    glibc raises its threshold for mapping a block of its own each time such a block is freed
    (mallopt(3), ``M_MMAP_THRESHOLD``), so from the second load on, most tensors lie in the heap,
    whose free pages it keeps. Other C libraries have no such call and need none.
    """
    gc.collect()
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
