"""What the tests of this distribution share: writing files, finding the test data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from tramontane_testkit.data import data_path


@pytest.fixture
def data() -> Callable[..., Path]:
    """See `tramontane_testkit.data.data_path`."""
    return data_path


@pytest.fixture
def llama() -> dict[str, Any]:
    """Metadata of a small Llama, keys without the architecture's prefix."""
    return {
        "embedding_length": 64, "block_count": 2, "attention.head_count": 4,
        "attention.head_count_kv": 2, "context_length": 128, "feed_forward_length": 96,
        "attention.layer_norm_rms_epsilon": 1e-5, "rope.dimension_count": 16, "rope.freq_base": 5e5,
    }  # fmt: skip


@pytest.fixture
def write() -> Callable[..., Path]:
    """Write a file as the gguf package does: ``write(path, arch, keys, tensors, **more)``."""
    return _write


def _write(
    path: Path,
    arch: str,
    keys: dict[str, Any],
    tensors: dict[str, np.ndarray | tuple[np.ndarray, Any]],
    **more: Any,
) -> Path:
    """A file as the gguf package writes it; ``keys`` get the architecture's prefix."""
    writer = gguf.GGUFWriter(str(path), arch)
    for name, value in {**{f"{arch}.{k}": v for k, v in keys.items()}, **more}.items():
        if isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        else:
            writer.add_array(name, value)
    for name, tensor in tensors.items():
        if isinstance(tensor, tuple):
            writer.add_tensor(name, tensor[0], raw_dtype=tensor[1])
        else:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
