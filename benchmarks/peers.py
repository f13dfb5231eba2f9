"""The engines measured beside ours, each in an environment of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from attrs import frozen


@frozen
class Peer:
    """Another engine.

    Attributes:
        name: in tables.
        package: what ``pip install`` of it takes.
        script: in ``engines/``, what drives it.
    """

    name: str
    package: str
    script: str

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
            subprocess.run([*pip, self.package], check=True)
            installed.touch()
        return str(python)


PEERS = (
    Peer("llama.cpp", "llama-cpp-python", "llamacpp.py"),
    Peer("mistral.rs", "mistralrs", "mistral_rs.py"),
)
