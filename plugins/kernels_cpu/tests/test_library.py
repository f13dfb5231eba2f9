"""Whether there is a library to test at all: every other test here skips without one."""

import os
import shutil
import subprocess
import sys

import pytest

from tramontane_kernels_cpu.library import LIBRARY, why_not


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
