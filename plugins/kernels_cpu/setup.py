"""Builds the native library, one translation unit for each instruction set.

A missing or failing compiler is no error: the package then installs without the library, and
tramontane runs through torch.
"""

from __future__ import annotations

import os
import platform
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

X86 = platform.machine().lower() in ("x86_64", "amd64")
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [f"-mavx512{part}" for part in ("f", "bw", "vl", "dq", "vnni")]
FLAGS = [
    "-std=c++17",
    "-fopenmp",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wno-psabi",
    "-Wno-maybe-uninitialized",  # of the compiler's own headers
    "-g0",
]
SOURCES: dict[str, list[str]] = {
    "native/isa_portable.cpp": ["-O3"],
    "native/api.cpp": ["-O2"],
    "native/attention.cpp": ["-O2"],
    "native/block.cpp": ["-O2"],
    "native/draw.cpp": ["-O2"],
    "native/experts.cpp": ["-O3"],
    "native/work.cpp": ["-O3"],
    "native/pack.cpp": ["-O2"],
    "native/unpack.cpp": ["-O2"],
}
if X86:
    SOURCES["native/isa_avx2.cpp"] = ["-O3", *AVX2]
    SOURCES["native/isa_avx512.cpp"] = ["-O3", *AVX2, *AVX512, "-mprefer-vector-width=512"]
# For `make check-avx512`: that code on any processor with AVX2, through SIMDe's headers.
EMULATED = X86 and bool(os.environ.get("TRAMONTANE_NATIVE_EMULATE_AVX512"))
if EMULATED:
    SOURCES["native/isa_avx512.cpp"] = ["-O2", *AVX2]
# For `make check-native`: the same code, stopping at the first fault; optimizing checks takes long.
SANITIZED = bool(os.environ.get("TRAMONTANE_NATIVE_SANITIZE"))
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g1", "-O1"]
HEADERS = sorted(
    str(path)
    for kind in ("*.h", "*.inl")
    for path in Path(__file__).parent.joinpath("native").glob(kind)
)


class BuildNative(build_ext):
    """Compiles each source with its own flags, several at a time."""

    def build_extension(self, ext: Extension) -> None:
        try:
            self._build(ext)
        except Exception as error:
            self.warn(f"native kernels are not built, torch will be used: {error}")

    def _build(self, ext: Extension) -> None:
        macros: list[Any] = [("TMK_X86", "1")] if X86 else []
        if EMULATED:
            macros.append(("TMK_EMULATED_AVX512", "1"))

        def compiled(source: str) -> list[str]:
            objects: list[str] = self.compiler.compile(
                [source],
                output_dir=self.build_temp,
                macros=macros,
                extra_postargs=[*FLAGS, *SOURCES[source], *(SANITIZERS if SANITIZED else [])],
                depends=HEADERS,
            )
            return objects

        with ThreadPoolExecutor(4) as pool:
            objects = [name for part in pool.map(compiled, ext.sources) for name in part]
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        flags = ["-fopenmp", *(SANITIZERS[:1] if SANITIZED else [])]
        self.compiler.link_shared_object(
            objects, str(target), extra_postargs=flags, target_lang="c++"
        )

    def get_outputs(self) -> list[str]:
        outputs: list[str] = [name for name in super().get_outputs() if Path(name).exists()]
        return outputs


setup(
    ext_modules=[Extension("tramontane_kernels_cpu._native", list(SOURCES), optional=True)],
    cmdclass={"build_ext": BuildNative},
)
