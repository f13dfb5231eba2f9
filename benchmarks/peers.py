"""The engines measured beside ours, each in an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from attrs import asdict, field, frozen
from synthetic import Shape

ENGINES = Path(__file__).parent / "engines"


@frozen
class Peer:
    """Another engine.

    Attributes:
        name: in tables.
        package: what ``pip install`` of it takes.
        script: in ``engines/``, what drives it.
        build: environment variables for installing it, where it is built from source.
        maker: in ``engines/``, what writes a model in its own format, where it reads no GGUF.
        formats: of our names, those that it has something like, and what ``maker`` is told.
    """

    name: str
    package: str
    script: str
    build: Mapping[str, str] = field(factory=dict)
    maker: str | None = None
    formats: Mapping[str, str] = field(factory=dict)

    @property
    def option(self) -> str:
        """Names it on the command line: ``llamacpp``."""
        return self.script.removesuffix(".py").replace("_", "-")

    def interpreter(self, out: Path) -> str:
        """Python of its environment below ``out``, which is made when it is not there."""
        env = out / f"env-{self.option}"
        python = env / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
        installed = env / "installed"
        if not installed.exists():
            print(f"installing {self.package} into {env}; a source build takes minutes", flush=True)
            subprocess.run([sys.executable, "-m", "venv", str(env)], check=True)
            pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "-q"]
            subprocess.run([*pip, self.package], check=True, env={**os.environ, **self.build})
            installed.touch()
        return str(python)

    def model(self, python: str, file: Path, shape: Shape, format_name: str) -> Path | None:
        """What it measures for a GGUF file of ours: the file, or a model of that shape in its own
        format, written when it is not there. None where it has nothing like the format."""
        if self.maker is None:
            return file
        if format_name not in self.formats:
            return None
        told = self.formats[format_name]
        folder = file.with_name(f"{file.stem}-{self.option}-{told}")
        if not folder.exists():
            part = folder.with_suffix(".part")
            command = [python, str(ENGINES / self.maker), str(part), told]
            subprocess.run([*command, json.dumps(asdict(shape))], check=True)
            part.rename(folder)
        return folder


PEERS = (
    Peer(
        "llama.cpp",
        "llama-cpp-python",
        "llamacpp.py",
        # This processor's instructions and OpenMP, whatever the defaults are; no image encoders.
        {"CMAKE_ARGS": "-DGGML_NATIVE=ON -DGGML_OPENMP=ON -DLLAVA_BUILD=OFF"},
    ),
    Peer("mistral.rs", "mistralrs", "mistral_rs.py"),
    Peer(
        "OpenVINO GenAI",
        "openvino-genai",
        "open_vino.py",
        maker="openvino_model.py",
        formats={"q4_k_m": "4", "q8_0": "8"},
    ),
)
