"""Errors of a step, made fit for the one reader they concern."""

from __future__ import annotations

import traceback

import torch

from tramontane.engine.sequence import Sequence
from tramontane.errors import EngineError


def chained(message: str, cause: Exception) -> EngineError:
    """An `EngineError` for a reader who may keep it: its cause holds no tensors."""
    release_frames(cause)
    error = EngineError(message)
    error.__cause__ = cause
    return error


def forward_error(seq: Sequence, query_len: int, cause: Exception) -> EngineError:
    context_len = seq.num_computed + query_len
    if is_out_of_memory(cause):
        return chained(
            f"Memory ran out while computing {query_len} tokens at context length {context_len}. "
            "Load the model with fewer max_seqs, a shorter context (pa_ctxt_len) or a smaller "
            "quantization, or free memory held by other programs.",
            cause,
        )
    return chained(
        f"The model failed on this request at context length {context_len}: "
        f"{type(cause).__name__}: {cause}",
        cause,
    )


def release_frames(exc: BaseException) -> None:
    """Turn the traceback into a note. Its frames, and through ``f_back`` even the callers' frames
    that go on, would keep activations and model alive for as long as somebody keeps the error."""
    seen: BaseException | None = exc
    while seen is not None:
        if seen.__traceback__ is not None:
            seen.add_note("".join(traceback.format_tb(seen.__traceback__)).rstrip())
            traceback.clear_frames(seen.__traceback__)
            seen.__traceback__ = None
        seen = seen.__cause__ or seen.__context__


def is_out_of_memory(exc: BaseException) -> bool:
    if isinstance(exc, (MemoryError, torch.OutOfMemoryError)):
        return True
    message = str(exc).lower()  # the CPU allocator raises a plain RuntimeError
    return isinstance(exc, RuntimeError) and (
        "out of memory" in message or "not enough memory" in message or "allocate memory" in message
    )
