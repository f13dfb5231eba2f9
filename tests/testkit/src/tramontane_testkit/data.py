"""Finds the folder of test data that does not travel with the repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ENVIRONMENT = "TRAMONTANE_TEST_DATA"


def data_folder() -> Path | None:
    """The folder named by ``TRAMONTANE_TEST_DATA``, else ``shared/data`` beside the repository."""
    named = os.environ.get(ENVIRONMENT)
    if named:
        return Path(named)
    here = Path.cwd()
    near = (folder / "shared" / "data" for folder in (here, *here.parents))
    return next((folder for folder in near if folder.is_dir()), None)


def data_path(*parts: str) -> Path:
    """A file or folder of the test data; skips the test when it is not there.

    Args:
        parts: path below the data folder, e.g. ``"models", "tinystories-656k"``.
    """
    folder = data_folder()
    if folder is None:
        pytest.skip(f"no test data: set {ENVIRONMENT}, or put them in ../shared/data")
    path = folder.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"the test data in {folder} lack {'/'.join(parts)}")
    return path
