"""llama.cpp beside us, through llama-cpp-python, where somebody has installed it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

CONTEXT = 256


def greedy(file: Path, prompt: Sequence[int], count: int) -> list[int]:
    """The likeliest continuation of ``prompt`` by llama.cpp, with keys and values in F32 as ours;
    skips where it is not installed."""
    package: Any = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    model = package.Llama(
        str(file),
        n_ctx=CONTEXT,
        n_gpu_layers=0,
        flash_attn=False,
        swa_full=True,
        type_k=package.GGML_TYPE_F32,
        type_v=package.GGML_TYPE_F32,
        verbose=False,
    )
    try:
        chosen: list[int] = []
        model.eval(list(prompt))
        for _ in range(count):
            logits = np.ctypeslib.as_array(model._ctx.get_logits(), (model.n_vocab(),))
            chosen.append(int(logits.argmax()))
            model.eval(chosen[-1:])
        return chosen
    finally:
        model.close()
