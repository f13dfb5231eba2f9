"""Whether there is a library to test at all: every other test here skips without one."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tramontane_kernels_cpu.library import ENVIRONMENT, LIBRARY, native, why_not

OTHERS = sorted(set(Path(__file__).parent.glob("test_*.py")) - {Path(__file__)})


def test_a_machine_that_can_build_the_library_has_it():
    if not any(map(shutil.which, ("g++", "clang++", "c++"))):
        pytest.skip("there is no C++ compiler")
    assert why_not() is None


def test_a_library_that_was_asked_for_has_no_stand_in(tmp_path):
    code = "from tramontane_kernels_cpu.library import native; native()"
    environment = os.environ | {LIBRARY: str(tmp_path / "absent.so")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert f"ConfigError: {LIBRARY} is" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("file", OTHERS, ids=lambda file: file.stem)
@pytest.mark.parametrize("isa", ["portable", "portable16", "avx2", "avx512", "avx512bf16"])
def test_other_instruction_sets(isa, file):
    """The library settles for one at start, so each needs a process of its own."""
    used = native()
    if used is None:
        pytest.skip(str(why_not()))
    if isa == used.isa or os.environ.get(ENVIRONMENT):
        pytest.skip(f"this run uses {used.isa} already")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "--import-mode=importlib", str(file)],
        env=os.environ | {ENVIRONMENT: isa},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    if "which this processor does not have" in done.stdout + done.stderr:
        pytest.skip(f"this processor lacks {isa}; make check-avx512 runs that one by emulation")
    assert done.returncode == 0, done.stdout[-3000:]
