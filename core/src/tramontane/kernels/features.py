"""What a device can do, in the words kernels use in ``requires``."""

from __future__ import annotations

import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch


@cache
def features(device: torch.device) -> frozenset[str]:
    """Features of ``device``.

    * CPU: instruction sets in lower case without separators (``avx2``, ``avx512vnni``, ``neon``).
    * CUDA: ``sm80`` for every compute capability up to the device's own.
    * Any: ``triton`` when that package is installed.
    """
    found = {"triton"} if find_spec("triton") is not None else set()
    if device.type == "cpu":
        found |= _cpu_flags()
    elif device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        own = 10 * major + minor
        found |= {f"sm{n}" for n in range(50, own + 1)}
    return frozenset(found)


def _cpu_flags() -> set[str]:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("flags", "Features"):
                flags = {flag.replace("_", "").lower() for flag in value.split()}
                return flags | ({"neon"} if "asimd" in flags else set())
    # Elsewhere torch's own reading has to do: DEFAULT, NEON, AVX2 or AVX512.
    capability = torch.backends.cpu.get_cpu_capability().lower()
    return {capability, "avx2", "avx512f"} if capability == "avx512" else {capability}
