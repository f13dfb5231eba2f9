"""The native library: where it is, which instruction set it uses, how it is called."""

from __future__ import annotations

import ctypes
import importlib.machinery
import os
from functools import cache
from pathlib import Path
from typing import Any

import torch
from attrs import frozen

from tramontane.errors import ConfigError

ENVIRONMENT = "TRAMONTANE_CPU_ISA"
"""``portable``, ``avx2``, ``avx512`` or ``avx512bf16`` forces an instruction set; ``auto`` takes
the best that the processor has."""

LIBRARY = "TRAMONTANE_CPU_LIBRARY"
"""Path of a library to load in place of the installed one, as ``make check-native`` does."""

ISAS = ("auto", "portable", "avx2", "avx512", "avx512bf16")
_TESTED = ("portable16",)  # the AVX-512 layout in portable code, for tests
_VERSION = 11

_int, _long, _double, _pointer = ctypes.c_int32, ctypes.c_int64, ctypes.c_double, ctypes.c_void_p
_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "tmk_version": (_long, ()),
    "tmk_select": (ctypes.c_char_p, (ctypes.c_char_p,)),
    "tmk_packed_bytes": (_long, (_int, _long, _long)),
    "tmk_pack": (_long, (_int, _long, _long, _pointer, _pointer, _pointer, _int)),
    "tmk_affine_bytes": (_long, (_pointer,)),
    "tmk_pack_affine": (_long, (*[_pointer] * 5, _int)),
    "tmk_unpack": (_long, (_pointer, _pointer, _long, _pointer, _int)),
    "tmk_unpack_affine": (_long, (_pointer, _pointer, _long, *[_pointer] * 3, _int)),
    "tmk_floats": (_long, (_pointer, _long, _long, _pointer, _int)),
    "tmk_linear": (_long, (_pointer, _pointer, _long, _long, _pointer, _long, _int)),
    "tmk_attention": (_long, (_pointer, _pointer, _pointer, _long, _pointer, _int)),
    "tmk_norm": (_long, (_pointer, _pointer, _double, _long, _long, _pointer, _int)),
    "tmk_blocks": (_long, (_pointer, _pointer, _long, _pointer, _pointer, _pointer, _int)),
    "tmk_draw": (_long, (_pointer, _long, _long, _pointer, _long, _pointer, _int)),
    "tmk_penalize": (_long, (_pointer, _long, _pointer, _pointer, _long, *[_double] * 3)),
    "tmk_experts": (_long, (_pointer, _pointer, _pointer, _long, _pointer, _int)),
}


@frozen
class Native:
    """The loaded library.

    Attributes:
        isa: instruction set in use.
        calls: the functions; each lets other Python threads run.
    """

    isa: str
    calls: Any


def native() -> Native | None:
    """The library, or None where it cannot be used; `why_not` says why."""
    found = _load()
    return found if isinstance(found, Native) else None


def why_not() -> str | None:
    """Why the library is not used, or None when it is."""
    found = _load()
    return found if isinstance(found, str) else None


def variant() -> str | None:
    """The instruction set in use, and why that one."""
    used = native()
    if used is None:
        return None
    asked = os.environ.get(ENVIRONMENT, "auto").lower()
    if asked != "auto":
        return f"{used.isa} by {ENVIRONMENT}"
    if used.isa == "portable":
        return "portable code, as this processor lacks AVX2 with FMA and F16C"
    return f"{used.isa}, the best this processor has"


def check(status: int) -> None:
    """Turn a negative result into an error; those are faults of ours, or memory."""
    if status >= 0:
        return
    if status == -4:
        raise MemoryError("the native kernels could not allocate their working memory")
    reasons = {-1: "unknown weight type", -2: "shapes disagree", -3: "a scale is not finite"}
    raise RuntimeError(f"native kernel: {reasons.get(status, status)}")


@cache
def _load() -> Native | str:
    found = _opened()
    if isinstance(found, str) and LIBRARY in os.environ:
        raise ConfigError(f"{LIBRARY} is {os.environ[LIBRARY]!r}: {found}")
    return found


def _opened() -> Native | str:
    asked = os.environ.get(ENVIRONMENT, "auto").lower()
    if asked not in ISAS + _TESTED:
        raise ConfigError(f"{ENVIRONMENT} is {asked!r}; use one of {', '.join(ISAS)}")
    folder = Path(__file__).parent
    names = [f"_native{suffix}" for suffix in importlib.machinery.EXTENSION_SUFFIXES]
    found = [folder / name for name in names if (folder / name).exists()]
    path = Path(os.environ[LIBRARY]) if LIBRARY in os.environ else next(iter(found), None)
    if path is None:
        return (
            "the native library was not built; install a C++ compiler (g++ or clang with OpenMP) "
            "and reinstall tramontane-kernels-cpu"
        )
    try:
        # After torch, whose OpenMP runtime and threads it then shares.
        library = ctypes.CDLL(str(path))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        return f"the native library cannot be loaded: {error}; reinstall tramontane-kernels-cpu"
    if library.tmk_version() != _VERSION:
        return "the native library is of another version; reinstall tramontane-kernels-cpu"
    name = library.tmk_select(asked.encode())
    if name is None:
        raise ConfigError(f"{ENVIRONMENT} is {asked!r}, which this processor does not have")
    return Native(name.decode(), library)


def threads() -> int:
    """Threads a call may use: torch's setting, which follows OMP_NUM_THREADS."""
    return torch.get_num_threads()
