"""Encoders: the package's own bits where it has an encoder, llama.cpp's quality everywhere."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tramontane.errors import ConfigError
from tramontane_gguf import native
from tramontane_gguf.quantizer import GgmlQuantizer
from tramontane_gguf.types import BY_NAME

EXACT = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0")
SEARCHED = ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs")
TOLERANCE = {"q2_k": 0.32, "q3_k": 0.17, "q4_k": 0.08, "q5_k": 0.04, "q6_k": 0.02, "q8_k": 0.01,
             "iq4_nl": 0.08, "iq4_xs": 0.08, "q8_1": 0.006}  # fmt: skip
"""Relative error of normally distributed weights, somewhat above what each type reaches."""

quantizer = GgmlQuantizer()


@pytest.fixture(params=["auto", "portable", "torch"])
def encoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(native.ENVIRONMENT, request.param)
    if request.param != "torch" and native._library() is None:
        pytest.skip("the native encoders are not built")
    return str(request.param)


def error(x: Tensor, packed: object, counts: Tensor | None = None) -> float:
    """Root of the mean squared error, weighted where ``counts`` are given."""
    w = torch.ones(x.shape[-1]) if counts is None else counts
    squared = (packed.dequantize() - x).square() * w
    return float((squared.sum() / (w.sum() * x.numel() / x.shape[-1])).sqrt())


@pytest.mark.parametrize("name", EXACT)
def test_the_reference_of_ggml_bit_for_bit(name: str, encoder: str) -> None:
    x = torch.randn(5, 96, generator=torch.Generator().manual_seed(1))
    x[1] = 0
    x[2, :32] = 3.0
    x[3] *= 1e-6
    theirs = gguf.quantize(x.numpy(), gguf.GGMLQuantizationType(BY_NAME[name].number))
    assert np.array_equal(quantizer.quantize(x, name).blocks.numpy(), theirs)


@pytest.mark.parametrize("name", [*SEARCHED, "q8_k", "q8_1"])
def test_errors_are_small_and_zeros_stay(name: str, encoder: str) -> None:
    x = torch.randn(8, 512, generator=torch.Generator().manual_seed(2))
    x[3] = 0
    packed = quantizer.quantize(x, name)
    assert error(x, packed) < TOLERANCE[name]
    assert not packed.dequantize()[3].any()
    half = quantizer.quantize(x.bfloat16(), name)
    assert error(x.bfloat16().float(), half) < TOLERANCE[name]


@pytest.mark.parametrize("name", [*SEARCHED, "q4_0", "q4_1", "q5_0", "q5_1"])
def test_torch_and_native_code_agree(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if native._library() is None:
        pytest.skip("the native encoders are not built")
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(16, 256, generator=generator)
    counts = torch.rand(256, generator=generator) ** 3 + 0.01
    for given in (None, counts):
        found = {}
        for mode in ("auto", "torch"):
            monkeypatch.setenv(native.ENVIRONMENT, mode)
            found[mode] = error(x, quantizer.quantize(x, name, importance=given), given)
        assert found["auto"] == pytest.approx(found["torch"], rel=0.01)


@pytest.mark.parametrize("name", ["q2_k", "q4_k", "q6_k", "q4_0", "q5_1", "iq4_xs"])
def test_important_columns_are_kept_better(name: str, encoder: str) -> None:
    x = torch.randn(64, 512, generator=torch.Generator().manual_seed(4))
    counts = torch.ones(512)
    counts[::16] = 100.0
    plain = quantizer.quantize(x, name)
    weighted = quantizer.quantize(x, name, importance=counts)
    assert error(x, weighted, counts) < 0.97 * error(x, plain, counts)


def test_stacks_have_importances_of_their_own() -> None:
    x = torch.randn(3, 4, 256, generator=torch.Generator().manual_seed(5))
    counts = torch.rand(3, 256) + 0.01
    counts[1] = 0  # an expert that no token reached
    stack = quantizer.quantize(x, "q4_k", importance=counts)
    for expert, given in ((0, counts[0]), (1, None), (2, counts[2])):
        alone = quantizer.quantize(x[expert], "q4_k", importance=given)
        assert torch.equal(stack.blocks[expert], alone.blocks)
    assert stack.nbytes == quantizer.packed_bytes(x.shape, "Q4K")


def test_threads_are_those_of_torch_or_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MISTRALRS_ISQ_SINGLETHREAD", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    assert native.threads() == 7
    monkeypatch.setenv("MISTRALRS_ISQ_SINGLETHREAD", "1")
    assert native.threads() == 1


def test_what_cannot_be_encoded(encoder: str) -> None:
    x = torch.randn(2, 256)
    with pytest.raises(ConfigError, match="rows must be multiples of 256"):
        quantizer.quantize(x[:, :64], "q4_k")
    assert quantizer.packed_bytes((2, 64), "q4_k") is None
    with pytest.raises(ConfigError, match="can be read but not encoded"):
        quantizer.quantize(x, "iq2_xs")
    with pytest.raises(ConfigError, match="is no ggml type"):
        quantizer.quantize(x, "q9_k")
    with pytest.raises(ConfigError, match="do not fit a weight"):
        quantizer.quantize(x, "q4_k", importance=torch.ones(128))
    with pytest.raises(ConfigError, match="finite"):
        quantizer.quantize(x, "q4_k", importance=torch.full((256,), -1.0))
    x[1, 7] = torch.nan
    with pytest.raises(ConfigError, match="NaN or infinite"):
        quantizer.quantize(x, "q4_k")


def peer() -> ctypes.CDLL:
    """llama.cpp's own quantizers; TRAMONTANE_LIBGGML names the library."""
    named = os.environ.get("TRAMONTANE_LIBGGML")
    found = [Path(named)] if named else []
    try:
        import llama_cpp

        found += Path(llama_cpp.__file__).parent.glob("lib/libggml-base.*")
    except ImportError:
        pass
    if not found:
        pytest.skip("no libggml: set TRAMONTANE_LIBGGML or install llama-cpp-python")
    library = ctypes.CDLL(str(found[0]))
    long, pointer = ctypes.c_int64, ctypes.c_void_p
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = (ctypes.c_int, pointer, pointer, *[long] * 3, pointer)
    return library


@pytest.mark.peer
@pytest.mark.slow
@pytest.mark.parametrize("name", [*EXACT, *SEARCHED])
def test_as_good_as_llama_cpp(name: str, data, encoder: str) -> None:
    """RMSE within 1 % of llama.cpp's, on Gaussian and on trained rows, weighted and not."""
    library, kind = peer(), BY_NAME[name]
    generator = torch.Generator().manual_seed(6)
    model = load_file(data("models", "tinystories-656k", "model.safetensors"))
    trained = torch.cat([v.float().flatten() for v in model.values() if v.dim() == 2])
    for x in (torch.randn(128, 1024, generator=generator), trained[: 256 * 1024].view(256, 1024)):
        counts = torch.rand(1024, generator=generator) ** 4 * 10 + 0.01
        for given in (None, counts):
            packed = quantizer.quantize(x, name, importance=given)
            theirs = torch.empty_like(packed.blocks)
            address = None if given is None else given.data_ptr()
            library.ggml_quantize_chunk(
                kind.number, x.data_ptr(), theirs.data_ptr(), 0, *x.shape, address
            )
            other = type(packed)(theirs, kind, x.shape)
            assert error(x, packed, given) <= 1.01 * error(x, other, given)
