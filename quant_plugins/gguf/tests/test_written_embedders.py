"""Embedding models written to GGUF give the same vectors: here, and in llama.cpp."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tramontane import EmbeddingRequest, Runner, Which
from tramontane.errors import ConfigError, SourceError
from tramontane.loading.loader import LoadRequest
from tramontane.loading.stored import open_stored
from tramontane_gguf.checkpoint import GgufFormat
from tramontane_testkit.embedding_models import (
    GEMMA,
    LAST,
    MEAN,
    NORMALIZE,
    QWEN,
    dense,
    tiny_embedder,
)

pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")

TEXTS = ["task: search result | query: what is a tramontane?", "A cold wind from the north. " * 3]
DEEP = {**GEMMA, "num_hidden_layers": 6, "layer_types": None}
"""As Gemma 3's layers are by its own rule, which is the only one that files can say."""


def projection(width: int, out: int, **settings: Any) -> tuple[str, dict[str, Any]]:
    return dense(width, out, **{"bias": False, "activation_function": nn.Identity(), **settings})


def written(directory: Path, file: Path, type_name: str = "F32") -> Path:
    with open_stored(LoadRequest(model_id=str(directory))) as model:
        GgufFormat().write(model, file, type_name)
    return file


def vectors(model: Path) -> torch.Tensor:
    with Runner(which=Which.Embedding(str(model), dtype="f32")) as runner:
        return torch.tensor(runner.send_embedding_request(EmbeddingRequest(TEXTS)))


@pytest.fixture(scope="module", params=["gemma", "qwen"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp(request.param)
    if request.param == "qwen":
        return tiny_embedder(place, (LAST, NORMALIZE), **QWEN)
    return tiny_embedder(place, (MEAN, projection(32, 48), projection(48, 32), NORMALIZE), **DEEP)


def test_vectors_are_those_of_the_model(directory: Path, tmp_path: Path) -> None:
    expected = vectors(directory)
    plain = vectors(written(directory, tmp_path / "f32.gguf"))
    torch.testing.assert_close(plain, expected, rtol=1e-4, atol=1e-4)
    packed = vectors(written(directory, tmp_path / "q8.gguf", "Q8_0"))
    assert not torch.equal(packed, expected)
    torch.testing.assert_close(packed, expected, rtol=0.05, atol=0.05)


@pytest.mark.peer
@pytest.mark.slow
def test_llama_cpp_gives_the_same(directory: Path, tmp_path: Path) -> None:
    package = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    file = written(directory, tmp_path / "f32.gguf")
    model = package.Llama(str(file), embedding=True, n_ctx=256, verbose=False)
    theirs = torch.tensor([model.embed(text, normalize=True) for text in TEXTS])
    model.close()
    torch.testing.assert_close(vectors(file), theirs, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ((("Pooling", {"pooling_mode": "max"}), NORMALIZE), "tokens are pooled by max"),
        ((MEAN,), "that vectors keep their length"),
        ((MEAN, projection(32, 32, bias=True), NORMALIZE), "without bias and activation"),
        ((MEAN, *[projection(32, 32)] * 3, NORMALIZE), "room for 2 layers of type Dense"),
    ],
)
def test_modules_that_files_cannot_say(modules: Any, message: str, tmp_path: Path) -> None:
    directory = tiny_embedder(tmp_path, modules, **QWEN)
    with pytest.raises(ConfigError, match=message):
        written(directory, tmp_path / "m.gguf")
    assert not list(tmp_path.glob("*.gguf"))


def test_a_module_that_is_promised_and_absent(tmp_path: Path) -> None:
    directory = tiny_embedder(tmp_path, **QWEN)
    (directory / "1_Pooling" / "config.json").unlink()
    with pytest.raises(SourceError, match=r"no config\.json"):
        written(directory, tmp_path / "m.gguf")
