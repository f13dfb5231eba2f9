"""Builds the native encoders, one translation unit for each instruction set.

A missing or failing compiler is no error: the package then installs without them, and weights are
encoded by torch.
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

X86 = platform.machine().lower() in ("x86_64", "amd64")
FLAGS = [
    "-std=c++17", "-fopenmp", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math",
    # Codes of the 32-wide types equal ggml's reference bit for bit.
    "-ffp-contract=off", "-Wno-psabi", "-g0",
]  # fmt: skip
SOURCES: dict[str, list[str]] = {
    "native/api.cpp": ["-O2"],
    "native/encode_portable.cpp": ["-O3"],
}
if X86:
    SOURCES["native/encode_avx2.cpp"] = ["-O3", "-mavx2", "-mfma", "-mf16c"]
HEADERS = sorted(
    str(path)
    for kind in ("*.h", "*.inl")
    for path in Path(__file__).parent.joinpath("native").glob(kind)
)


class BuildNative(build_ext):
    """Compiles each source with its own flags."""

    def build_extension(self, ext: Extension) -> None:
        try:
            self._build(ext)
        except Exception as error:
            self.warn(f"native encoders are not built, torch will be used: {error}")

    def _build(self, ext: Extension) -> None:
        macros: list[Any] = [("TGQ_X86", "1")] if X86 else []
        objects: list[str] = []
        for source in ext.sources:
            objects += self.compiler.compile(
                [source],
                output_dir=self.build_temp,
                macros=macros,
                extra_postargs=[*FLAGS, *SOURCES[source]],
                depends=HEADERS,
            )
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        self.compiler.link_shared_object(
            objects, str(target), extra_postargs=["-fopenmp"], target_lang="c++"
        )

    def get_outputs(self) -> list[str]:
        outputs: list[str] = [name for name in super().get_outputs() if Path(name).exists()]
        return outputs


setup(
    ext_modules=[Extension("tramontane_gguf._encode", list(SOURCES), optional=True)],
    cmdclass={"build_ext": BuildNative},
)
