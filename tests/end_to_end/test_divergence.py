"""How far quantized weights move the model: our kernels and llama.cpp's on the same file."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tramontane.loading.loader import LoadRequest, load_text
from tramontane.loading.stored import open_stored
from tramontane_gguf.checkpoint import GgufFormat
from tramontane_testkit import llama_cpp
from tramontane_testkit.data import data_path
from tramontane_testkit.stepping import Stepper

LEGACY = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL")
K = ("Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K", "IQ4_XS")
CASES = [("demo", kind) for kind in LEGACY + K] + [("tinystories", kind) for kind in LEGACY]
TOKENS = 480
SENSITIVE = 16
"""Tokens left out: a few, at which any rounding decides what comes next, carry half of a mean, and
which engine's rounding of activations lands better there is chance."""
ERRORS = 2.5
"""Standard errors of the mean difference, within which the rest of that chance stays."""


def source(model: str) -> Path:
    if model == "tinystories":
        return data_path("models", "tinystories-656k")
    package = pytest.importorskip("tramontane_demo_model")
    return Path(package.__file__).parent / "model"


@cache
def told(directory: Path) -> tuple[list[int], Tensor]:
    """A text that a model tells, and what it predicts there in float32: [T, vocab]."""
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(0)
    ids, past = torch.tensor([[model.config.bos_token_id]]), None
    with torch.inference_mode():
        for _ in range(TOKENS - 1):
            out = model(ids[:, -1:], past_key_values=past, use_cache=True)
            past = out.past_key_values
            drawn = out.logits[0, -1].softmax(-1).multinomial(1, generator=generator)
            ids = torch.cat((ids, drawn[None]), 1)
        logits = model(ids).logits[0]
    return ids[0].tolist(), logits.double().log_softmax(-1)


def ours(file: Path, ids: list[int]) -> Tensor:
    """What our kernels give after each token: [T, vocab]."""
    loaded = load_text(LoadRequest(model_id=str(file.parent), files=[file.name]))
    stepper = Stepper(loaded.model, loaded.config)
    stepper.add("story", ids)
    return stepper.finish("story")


def divergence(expected: Tensor, logits: Tensor) -> Tensor:
    """KL divergence from the plain model in nats: [T]."""
    found = logits.double().log_softmax(-1)
    return (expected.exp() * (expected - found)).sum(-1)


@pytest.mark.peer
@pytest.mark.slow
@pytest.mark.parametrize(("model", "kind"), CASES)
def test_as_near_to_the_plain_model_as_llama_cpp(model: str, kind: str, tmp_path: Path) -> None:
    library = pytest.importorskip("tramontane_kernels_cpu.library")
    if library.native() is None:
        pytest.skip(library.why_not())
    directory, file = source(model), tmp_path / "model.gguf"
    with open_stored(LoadRequest(model_id=str(directory))) as stored:
        GgufFormat().write(stored, file, kind)
    ids, expected = told(directory)
    theirs = divergence(expected, torch.from_numpy(llama_cpp.logits(file, ids)))
    found = divergence(expected, ours(file, ids))
    compared = (found + theirs).argsort()[:-SENSITIVE]
    own, other = found[compared], theirs[compared]
    error = float((own - other).std()) / len(compared) ** 0.5
    said = f"{own.mean():.6f} nats a token, llama.cpp {other.mean():.6f}, error {error:.6f}"
    assert own.mean() <= other.mean() + ERRORS * error, said
    assert error <= 0.1 * other.mean(), f"the comparison says nothing: {said}"
