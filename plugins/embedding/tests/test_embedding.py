"""Embedding models against sentence-transformers, and the requests they serve."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tramontane.pipeline.embedding as pipeline
from tramontane import (
    ChatCompletionRequest,
    ConfigError,
    EmbeddingRequest,
    EngineClosedError,
    ModelKindError,
    Runner,
    ValidationError,
    Which,
)
from tramontane.loading import device, placement
from tramontane_testkit.embedding_models import (
    GEMMA,
    LAST,
    MEAN,
    NORMALIZE,
    QWEN,
    dense,
    embedder_gguf,
    tiny_embedder,
)

WIDTHS = ((32, 48), (48, 24))
"""Linear layers of an EmbeddingGemma."""

TEXTS = [
    "task: search result | query: what is a tramontane?",
    "é",
    "A cold wind from the north, over the mountains and down to the sea. " * 3,
    "  spaces around  ",
    "A cold wind from the north",
]


def reference(directory: Path, texts: list[str]) -> torch.Tensor:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(directory), device="cpu")
    return torch.from_numpy(model.encode(texts))


def embed(runner: Runner, value: Any, **options: Any) -> torch.Tensor:
    return torch.tensor(runner.send_embedding_request(EmbeddingRequest(value, **options)))


def close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.fixture(scope="module")
def gemma_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As google/embeddinggemma-300m is laid out."""
    layers = [dense(a, b, bias=False, activation_function=nn.Identity()) for a, b in WIDTHS]
    modules = (MEAN, *layers, NORMALIZE)
    return tiny_embedder(tmp_path_factory.mktemp("gemma"), modules, **GEMMA)


@pytest.fixture(scope="module")
def qwen_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As Qwen/Qwen3-Embedding-0.6B is laid out."""
    return tiny_embedder(tmp_path_factory.mktemp("qwen"), (LAST, NORMALIZE), **QWEN)


@pytest.fixture(scope="module", params=["gemma_dir", "qwen_dir"])
def directory(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="module")
def runner(directory: Path) -> Any:
    with Runner(which=Which.Embedding(str(directory))) as runner:
        yield runner


@pytest.fixture
def changed(qwen_dir: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the Qwen3 model with other settings."""

    def change(**files: Any) -> Path:
        copy = tmp_path / "changed"
        shutil.copytree(qwen_dir, copy)
        for name, content in files.items():
            path = copy / f"{name.replace('__', '/')}.json"
            if isinstance(content, dict):
                content = json.loads(path.read_text("utf-8")) | content
            path.write_text(json.dumps(content), encoding="utf-8")
        return copy

    return change


# Equal to sentence-transformers ---------------------------------------------------------------


def test_texts_equal_the_reference(runner: Runner, directory: Path) -> None:
    vectors = embed(runner, TEXTS)
    close(vectors, reference(directory, TEXTS))
    close(vectors.norm(dim=-1), torch.ones(len(TEXTS)))


def test_every_pooling_mode_and_a_dense_layer_with_bias(tmp_path: Path) -> None:
    modes = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
    modules = (("Pooling", {"pooling_mode": modes}), dense(32 * len(modes), 20))
    directory = tiny_embedder(tmp_path, modules, **QWEN)
    with Runner(which=Which.Embedding(str(directory))) as runner:
        close(embed(runner, TEXTS), reference(directory, TEXTS))
        assert runner.stats()["embedding_width"] == 20


def test_switches_of_older_files(changed: Callable[..., Path]) -> None:
    directory = changed(
        **{
            "1_Pooling__config": {
                "pooling_mode": None,
                "pooling_mode_mean_tokens": True,
                "pooling_mode_lasttoken": True,
            }
        }
    )
    path = directory / "1_Pooling" / "config.json"
    settings = json.loads(path.read_text("utf-8"))
    del settings["pooling_mode"]
    path.write_text(json.dumps(settings), encoding="utf-8")
    with Runner(which=Which.Embedding(str(directory))) as runner:
        close(embed(runner, TEXTS), reference(directory, TEXTS))


def test_a_text_that_is_cut_equals_the_reference(runner: Runner, directory: Path) -> None:
    assert runner.max_sequence_length() == 256
    long = "abc " * 100
    for text in (long, "x" * 255):  # 254 fit between the special tokens
        with pytest.raises(ValidationError, match=r"input 1 has \d+ tokens, .* takes 256"):
            embed(runner, ["short", text])
    vectors = embed(runner, ["short", long], truncate_sequence=True)
    close(vectors, reference(directory, ["short", long]))


# Requests -------------------------------------------------------------------------------------


def test_every_form_of_input(runner: Runner) -> None:
    ids = [runner.tokenize_text(text) for text in TEXTS]
    vectors = embed(runner, TEXTS)
    assert torch.equal(embed(runner, ids), vectors)
    close(embed(runner, TEXTS[0]), vectors[:1], 1e-6)
    close(embed(runner, ids[0]), vectors[:1], 1e-6)
    assert runner.detokenize_text(ids[0]) == TEXTS[0]
    cut = embed(runner, [ids[0] * 20, ids[0]], truncate_sequence=True)
    close(cut[:1], embed(runner, (ids[0] * 20)[:256]), 1e-6)


def test_batches_by_length_change_nothing(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "BATCH_TOKENS", 64)
    generator = torch.Generator().manual_seed(1)
    lengths = [1, 90, 7, 7, 33, *torch.randint(1, 70, (25,), generator=generator).tolist()]
    texts = [torch.randint(0, 256, (n,), generator=generator).tolist() for n in lengths]
    before = runner.stats()["steps"]
    together = embed(runner, texts)
    assert 10 < runner.stats()["steps"] - before < len(texts)
    close(together, torch.cat([embed(runner, text) for text in texts]), 1e-6)


def test_threads_and_asyncio_get_their_own(runner: Runner) -> None:
    expected = embed(runner, TEXTS)
    found: dict[int, torch.Tensor] = {}

    def ask(i: int) -> None:
        found[i] = embed(runner, TEXTS[i % 5 :])

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, vectors in found.items():
        close(vectors, expected[i % 5 :], 1e-6)
    assert len(found) == 10

    async def both() -> list[list[list[float]]]:
        return await asyncio.gather(
            *(runner.send_embedding_request_async({"input": text}) for text in TEXTS)
        )

    close(torch.tensor(asyncio.run(both()))[:, 0], expected, 1e-6)


def test_unloading_and_reloading(qwen_dir: Path) -> None:
    name = str(qwen_dir)
    runner = Runner(which=Which.Embedding(name))
    vectors = embed(runner, TEXTS)
    runner.unload_model(name)
    assert runner.list_unloaded_models() == [name]
    assert torch.equal(embed(runner, TEXTS), vectors)  # reloads
    held = runner._models.peek(None)
    runner.close()
    with pytest.raises(EngineClosedError):
        embed(runner, TEXTS)
    with pytest.raises(EngineClosedError, match="closed"):
        held.embed(EmbeddingRequest("x"))


@pytest.mark.parametrize("value", [[5, 261], [[1], [5, 300]]])
def test_unknown_tokens_are_refused(runner: Runner, value: Any) -> None:
    with pytest.raises(ValidationError, match=r"token id (261|300), .* 0 to 260"):
        embed(runner, value)


def test_chat_and_completion_say_which_method_to_call(runner: Runner) -> None:
    for ask in (
        lambda: runner.send_chat_completion_request(ChatCompletionRequest("Hi")),
        lambda: runner.send_completion_request({"prompt": "Hi"}),
        lambda: runner.generate_audio("Hi"),
    ):
        with pytest.raises(
            ModelKindError,
            match=r"embedding models do not serve .* this one serves send_embedding_request",
        ):
            ask()


# Loading --------------------------------------------------------------------------------------


def test_arch_dtype_and_tokenizer_json(qwen_dir: Path, gemma_dir: Path, tmp_path: Path) -> None:
    other = tmp_path / "tokenizer.json"
    plain = json.loads((qwen_dir / "tokenizer.json").read_text("utf-8")) | {"post_processor": None}
    other.write_text(json.dumps(plain), encoding="utf-8")
    with Runner(
        which=Which.Embedding(
            str(qwen_dir), arch="Qwen3Embedding", dtype="bf16", tokenizer_json=str(other)
        )
    ) as runner:
        assert runner.stats()["architecture"] == "Qwen3Embedding"
        ids = runner.tokenize_text("x")
        assert ids == [120]  # without the special tokens of the model's own tokenizer
        rough = embed(runner, ids)
    with Runner(which=Which.Embedding(str(qwen_dir), dtype="f32")) as runner:
        exact = embed(runner, ids)
    assert not torch.equal(rough, exact)
    close(rough, exact, 5e-2)
    with pytest.raises(ConfigError, match="use_bidirectional_attention is None"):
        Runner(which=Which.Embedding(str(qwen_dir), arch="EmbeddingGemma"))


def test_a_topology_packs_and_places_single_layers(
    qwen_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tramontane_isq", reason="tramontane-isq is not installed")
    # torch tells cpu:0 from cpu, and computes there all the same.
    for module in (device, placement):
        monkeypatch.setattr(module, "accelerators", lambda: [torch.device("cpu", 0)])
    path = tmp_path / "topology.yml"
    vectors = []
    for types in ("", "1: {isq: Q8_0}"):
        path.write_text(f"0: {{device: cpu}}\n{types}", encoding="utf-8")
        which = Which.Embedding(str(qwen_dir), dtype="f32", topology=str(path))
        with Runner(which=which) as runner:
            loaded = runner._models.peek(None)._loaded  # type: ignore[attr-defined]
            assert [str(place) for place in loaded.device_map.layers] == ["cpu", "cpu:0"]
            packed = {n for n, m in loaded.model.named_modules() if hasattr(m, "packed")}
            assert len(packed) == (5 if types else 0)  # rows of 48 are not whole blocks
            assert all(".layers.1." in name for name in packed)
            vectors.append(embed(runner, "a text"))
    with Runner(which=Which.Embedding(str(qwen_dir), dtype="f32")) as runner:
        assert torch.equal(embed(runner, "a text"), vectors[0])
    assert not torch.equal(*vectors)
    close(*vectors, 5e-2)
    with pytest.raises(ConfigError, match=r"topology gone\.yml cannot be read"):
        Runner(which=Which.Embedding(str(qwen_dir), topology="gone.yml"))


def test_the_kinds_are_told_apart(gemma_dir: Path, tmp_path: Path) -> None:
    from tramontane_testkit.models import tiny_llama

    with pytest.raises(
        ModelKindError, match=r"EmbeddingGemma is one of the embedding.*Which\.Embedding"
    ):
        Runner(which=Which.Plain(str(gemma_dir)))
    with pytest.raises(ModelKindError, match=r"Llama is one of the text .*Which\.Plain"):
        Runner(which=Which.Embedding(str(tiny_llama(tmp_path / "llama"))))


def test_a_chat_model_of_the_same_class_is_sent_to_the_right_variant(tmp_path: Path) -> None:
    from tramontane_testkit.models import hf_model, save_hf

    chat = save_hf(hf_model("Qwen3ForCausalLM"), tmp_path / "chat")
    with pytest.raises(ValueError, match=r"no modules\.json.*Which\.Plain"):
        Runner(which=Which.Embedding(str(chat)))
    with Runner(which=Which.Plain(str(chat))) as runner:
        assert runner.stats()["architecture"] == "Qwen3"


# From GGUF ------------------------------------------------------------------------------------


def test_gguf_equals_the_reference(qwen_dir: Path, tmp_path: Path) -> None:
    keys = {**GEMMA, "num_hidden_layers": 6, "layer_types": None}
    layers = [dense(a, b, bias=False, activation_function=nn.Identity()) for a, b in WIDTHS]
    gemma = tiny_embedder(tmp_path / "gemma", (MEAN, *layers, NORMALIZE), **keys)
    for directory, architecture, pooling in ((gemma, "gemma-embedding", 1), (qwen_dir, "qwen3", 3)):
        file = embedder_gguf(directory, tmp_path / f"{architecture}.gguf", architecture, pooling)
        with Runner(which=Which.Embedding(str(file))) as runner:
            close(embed(runner, TEXTS), reference(directory, TEXTS))
            assert runner.max_sequence_length() == 256


def test_gguf_without_pooling_is_refused(qwen_dir: Path, tmp_path: Path) -> None:
    file = embedder_gguf(qwen_dir, tmp_path / "model.gguf", "qwen3", 0)
    with pytest.raises(ConfigError, match=r"pooling_type is 0.*Which\.GGUF"):
        Runner(which=Which.Embedding(str(file)))


MODULES = [
    {"type": "sentence_transformers.models.Transformer", "path": ""},
    {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"},
]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"modules": {}}, "modules.json holds a JSON dict where a list belongs"),
        ({"modules": MODULES[:1]}, "lists Transformer; supported are Transformer .* Pooling"),
        ({"modules": ["Transformer"]}, "must list modules with a type and a path"),
        ({"modules": [*MODULES, {"type": "x.CNN", "path": "2"}]}, "module of type 'x.CNN'"),
        ({"modules": [MODULES[0], {**MODULES[1], "path": "../x"}]}, "no folder of the model"),
        ({"modules": [*MODULES, {"type": "a.Dense", "path": "2"}]}, "has no config.json"),
        ({"1_Pooling__config": {"pooling_mode": "best"}}, "pooling_mode is .*'best'.* mean"),
        ({"1_Pooling__config": {"include_prompt": False}}, "include_prompt is False"),
        ({"1_Pooling__config": {"embedding_dimension": 8}}, "vectors of 8 .* have 32"),
        ({"sentence_bert_config": {"do_lower_case": True}}, "do_lower_case is true"),
        ({"sentence_bert_config": {"modality_config": {"message": {}}}}, "chat template"),
        ({"config": {"hidden_act": "sine"}}, "hidden_act is 'sine'"),
        (
            {"config": {"num_hidden_layers": 1, "layer_types": None}},
            r"no place for 'model\.layers\.1.* \(the model has 'model\.layers\.0",
        ),
    ],
)
def test_bad_files_are_refused(
    changed: Callable[..., Path], files: dict[str, Any], message: str
) -> None:
    if isinstance(files.get("modules"), dict):
        directory = changed()
        (directory / "modules.json").write_text("{}", encoding="utf-8")
    else:
        directory = changed(**files)
    with pytest.raises(ValueError, match=message):
        Runner(which=Which.Embedding(str(directory)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"in_features": 30}, "in_features is 30; what comes before gives 32"),
        ({"out_features": 0}, "out_features is 0"),
        ({"activation_function": "os.system"}, "activation_function is 'os.system'"),
        ({"use_residual": True}, "use_residual is true"),
        ({"module_input_name": "token_embeddings"}, "module_input_name is 'token_embeddings'"),
        ({"bias": False}, "no place for 'linear.bias'"),
        ({"out_features": 9}, r"must have shape \(9, 32\)"),
    ],
)
def test_bad_dense_layers_are_refused(
    dense_dir: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    copy = tmp_path / "changed"
    shutil.copytree(dense_dir, copy)
    path = copy / "2_Dense" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | settings), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        Runner(which=Which.Embedding(str(copy)))


@pytest.fixture(scope="module")
def dense_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_embedder(tmp_path_factory.mktemp("dense"), (MEAN, dense(32, 8), NORMALIZE), **QWEN)


def test_weights_are_packed_in_place(qwen_dir: Path) -> None:
    pytest.importorskip("tramontane_isq", reason="tramontane-isq is not installed")
    with Runner(which=Which.Embedding(str(qwen_dir), dtype="f32")) as runner:
        exact, size = embed(runner, TEXTS), runner.stats()["weight_bytes"]
    with Runner(which=Which.Embedding(str(qwen_dir), dtype="f32"), in_situ_quant="Q8_0") as runner:
        assert runner.stats()["weight_bytes"] < size
        packed = embed(runner, TEXTS)
    assert not torch.equal(packed, exact)
    close(packed, exact, 5e-2)
