"""llama.cpp beside us, through llama-cpp-python, where somebody has installed it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest


def greedy(file: Path, prompt: Sequence[int], count: int) -> list[int]:
    """The likeliest continuation of ``prompt`` by llama.cpp."""
    with _opened(file, len(prompt) + count) as model:
        chosen: list[int] = []
        model.eval(list(prompt))
        for _ in range(count):
            logits = np.ctypeslib.as_array(model._ctx.get_logits(), (model.n_vocab(),))
            chosen.append(int(logits.argmax()))
            model.eval(chosen[-1:])
        return chosen


def logits(file: Path, ids: Sequence[int]) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """What llama.cpp gives after each token: [T, vocab]."""
    with _opened(file, len(ids), logits_all=True) as model:
        model.eval(list(ids))
        return np.array(model.scores[: len(ids)])


@contextmanager
def _opened(file: Path, context: int, **settings: Any) -> Iterator[Any]:
    """With keys and values in F32, as ours; skips where llama.cpp is not installed."""
    package: Any = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    model = package.Llama(
        str(file),
        n_ctx=max(context, 256),
        n_gpu_layers=0,
        flash_attn=False,
        swa_full=True,
        type_k=package.GGML_TYPE_F32,
        type_v=package.GGML_TYPE_F32,
        verbose=False,
        **settings,
    )
    try:
        yield model
    finally:
        model.close()
