"""Where files come from: plug-ins, disk, hub. The hub is a fake one; nothing goes out."""

from __future__ import annotations

import fnmatch
import json
import logging
import shutil
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import huggingface_hub
import pytest
from huggingface_hub import constants, errors
from huggingface_hub.errors import HfHubHTTPError

from tramontane.errors import CheckpointError, SourceError
from tramontane.hooks import ModelSpec, PluginManager, hookimpl
from tramontane.loading.source import read_token, resolve


@pytest.fixture(autouse=True)
def no_tokens(monkeypatch, tmp_path):
    for name in ("HF_TOKEN", "HF_HUB_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))


def fill(directory: Path, *names: str) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text("{}")
    return directory


def names(files) -> list[str]:
    return [path.name for path in files.weights]


# Local ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("present", "chosen"),
    [
        (["model.safetensors", "pytorch_model.bin"], ["model.safetensors"]),
        (["pytorch_model.bin", "consolidated.safetensors"], ["pytorch_model.bin"]),
        (
            ["model-00002-of-00002.safetensors", "model-00001-of-00002.safetensors"],
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
        ),
        (
            ["pytorch_model-00001-of-00002.pth", "pytorch_model-00002-of-00002.pth"],
            ["pytorch_model-00001-of-00002.pth", "pytorch_model-00002-of-00002.pth"],
        ),
        (["mini.packed"], ["mini.packed"]),
        (["mini.packed", "model.safetensors"], ["model.safetensors"]),
    ],
)
def test_the_best_weights_of_a_directory(tmp_path, plugins, present, chosen):
    directory = fill(tmp_path / "m", "config.json", *present)
    files = resolve(str(directory), plugins=plugins)
    assert names(files) == chosen
    assert files.directory == directory


def test_an_index_says_which_shards(tmp_path):
    directory = fill(tmp_path / "m", "b.safetensors", "a.safetensors", "model-x.safetensors")
    index = {"weight_map": {"x": "b.safetensors", "y": "a.safetensors", "z": "b.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    assert names(resolve(str(directory))) == ["b.safetensors", "a.safetensors"]


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {"x": "gone.safetensors"}}, r"gone\.safetensors; fetch them again"),
        ({"weight_map": {"x": "../up.safetensors"}}, "no file of the directory"),
        ({"weight_map": {"x": "/etc/passwd"}}, "no file of the directory"),
        ({"weight_map": {"x": 3}}, "no file of the directory"),
        ({"weight_map": {}}, "no weight_map"),
        ({}, "no weight_map"),
    ],
)
def test_a_bad_index(tmp_path, index, message):
    directory = fill(tmp_path / "m", "config.json")
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=message):
        resolve(str(directory))


def test_a_corrupt_index(tmp_path):
    directory = fill(tmp_path / "m")
    (directory / "model.safetensors.index.json").write_text("{")
    with pytest.raises(SourceError, match=r"index\.json is not valid JSON"):
        resolve(str(directory))


def test_an_absent_shard_without_index(tmp_path):
    directory = fill(
        tmp_path / "m", "model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors"
    )
    with pytest.raises(CheckpointError, match="absent of 3: 2"):
        resolve(str(directory))


def test_a_directory_without_weights_lists_what_it_holds(tmp_path):
    directory = fill(tmp_path / "m", "config.json", "consolidated.safetensors")
    with pytest.raises(SourceError, match=r"no weights.*config\.json, consolidated\.safetensors"):
        resolve(str(directory))
    assert resolve(str(directory), weights=False).weights == ()


def test_several_models_in_a_directory(tmp_path, plugins):
    directory = fill(tmp_path / "m", "a.packed", "b.packed")
    with pytest.raises(SourceError, match=r"several models; name one of a\.packed, b\.packed"):
        resolve(str(directory), plugins=plugins)


def test_named_files_and_those_that_are_not_there(tmp_path):
    directory = fill(tmp_path / "m", "a.Q4_K_M.gguf", "b.gguf", "config.json")
    assert names(resolve(str(directory), files=["b.gguf"])) == ["b.gguf"]
    with pytest.raises(SourceError, match=r"no file a\.gguf; it holds a\.Q4_K_M\.gguf, b\.gguf$"):
        resolve(str(directory), files=["a.gguf"])
    with pytest.raises(SourceError, match=r"no \.ggml file; it holds a\.Q4_K_M\.gguf"):
        resolve(str(directory), files=["a.ggml"])
    with pytest.raises(SourceError, match="was named"):
        resolve(str(directory), files=[])


def test_a_single_file_is_a_model(tmp_path):
    directory = fill(tmp_path / "m", "x.gguf", "y.gguf")
    files = resolve(str(directory / "y.gguf"))
    assert (files.directory, names(files)) == (directory, ["y.gguf"])


def test_a_path_that_does_not_exist_is_not_taken_for_a_hub_id(tmp_path):
    for path in (str(tmp_path / "gone"), "./gone", "~/gone/gone"):
        with pytest.raises(SourceError, match="neither an existing directory"):
            resolve(path)


def test_a_travelling_model_comes_first(tmp_path, monkeypatch):
    package = ModuleType("carrier")
    package.__path__ = [str(fill(tmp_path / "carrier", "inside/model.safetensors"))]
    package.__spec__ = None
    (tmp_path / "carrier" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    fill(tmp_path / "here" / "tiny", "pytorch_model.bin")
    monkeypatch.chdir(tmp_path / "here")

    class Carrier:
        path = "inside"

        @hookimpl
        def tramontane_models(self):
            yield ModelSpec(name="tiny", package="carrier", path=self.path)

    plugins = PluginManager([Carrier()], discover=False)
    assert names(resolve("tiny", plugins=plugins)) == ["model.safetensors"]
    Carrier.path = "gone"
    with pytest.raises(SourceError, match="reinstall that package"):
        resolve("tiny", plugins=PluginManager([Carrier()], discover=False))


# Tokens -----------------------------------------------------------------------------------


def test_token_sources(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "from-env")
    (tmp_path / "token").write_text("from-file\n")
    assert read_token("literal:abc:d") == "abc:d"
    assert read_token("env:MY_TOKEN") == "from-env"
    assert read_token(f"path:{tmp_path / 'token'}") == "from-file"
    assert read_token("none") is None
    assert read_token("cache") is None
    monkeypatch.setenv("HF_HUB_TOKEN", "second")
    assert read_token("cache") == "second"
    monkeypatch.setenv("HF_TOKEN", "first")
    assert read_token("cache") == "first"


def test_unreadable_token_sources_mean_no_token_and_a_log_line(caplog, tmp_path):
    with caplog.at_level(logging.INFO, "tramontane"):
        assert read_token("env:NO_SUCH_VARIABLE") is None
        assert read_token(f"path:{tmp_path / 'gone'}") is None
    assert len(caplog.records) == 2


def test_an_unknown_token_source_is_refused():
    with pytest.raises(SourceError, match="'file:x' is unknown; use literal:"):
        read_token("file:x")


# Hub --------------------------------------------------------------------------------------


class FakeHub:
    """Stands for ``snapshot_download``: repositories are lists of file names."""

    repositories: ClassVar[dict[str, list[str]]] = {
        "org/safe": ["config.json", "model.safetensors", "pytorch_model.bin", "README.md"],
        "org/torch": ["config.json", "tokenizer.json", "pytorch_model.bin", "flax.msgpack"],
        "org/gguf": ["a.Q4_0.gguf", "a.Q8_0.gguf", "README.md"],
        "tokenizer": ["tokenizer.json", "chat_template.jinja", "model.safetensors"],
    }

    def __init__(self, root: Path) -> None:
        self.root, self.calls = root, []

    def __call__(self, repo_id, *, revision=None, cache_dir, token, allow_patterns):
        self.calls.append({"token": token, "cache_dir": cache_dir, "revision": revision})
        directory = self.root / repo_id.replace("/", "--")
        fill(
            directory,
            *(
                name
                for name in self.repositories[repo_id]
                if any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns)
            ),
        )
        return str(directory)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    fake = FakeHub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake)
    return fake


def test_only_what_is_needed_is_fetched(hub):
    files = resolve("org/safe", token_source="literal:T", cache_path="/cache", revision="v1")
    assert sorted(p.name for p in files.directory.iterdir()) == ["config.json", "model.safetensors"]
    assert names(files) == ["model.safetensors"]
    assert hub.calls == [{"token": "T", "cache_dir": Path("/cache"), "revision": "v1"}]


def test_bin_files_are_fetched_only_without_safetensors(hub):
    files = resolve("org/torch", token_source="none")
    assert names(files) == ["pytorch_model.bin"]
    assert not (files.directory / "flax.msgpack").exists()
    assert [call["token"] for call in hub.calls] == [False, False]


def test_a_tokenizer_repository_gives_no_weights(hub):
    files = resolve("tokenizer", weights=False)
    assert sorted(p.name for p in files.directory.iterdir()) == [
        "chat_template.jinja",
        "tokenizer.json",
    ]


def test_a_named_file_from_the_hub(hub, monkeypatch):
    files = resolve("org/gguf", files=["a.Q8_0.gguf"])
    assert [p.name for p in files.directory.iterdir()] == ["a.Q8_0.gguf"]

    monkeypatch.setattr(
        huggingface_hub.HfApi,
        "list_repo_files",
        lambda self, repo_id, revision=None: hub.repositories[repo_id],
    )
    with pytest.raises(SourceError, match=r"no file a\.gguf; there are: a\.Q4_0\.gguf, a\.Q8_0"):
        resolve("org/gguf", files=["a.gguf"])


def http_error(kind, status):
    class Response:
        status_code = status
        headers: ClassVar[dict[str, str]] = {}

    error = kind.__new__(kind)
    Exception.__init__(error, "said the hub")
    error.response = Response()
    return error


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (http_error(errors.GatedRepoError, 403), r"gated: accept its terms.*token_source"),
        (http_error(errors.RepositoryNotFoundError, 401), r"may see.*token_source"),
        (http_error(errors.RevisionNotFoundError, 404), "no revision 'v9'"),
        (http_error(HfHubHTTPError, 403), "token is missing or not allowed"),
        (http_error(HfHubHTTPError, 500), "could not be fetched"),
        (errors.LocalEntryNotFoundError("not cached"), r"cannot be reached.*hf download org/x"),
        (ConnectionResetError("reset"), "ConnectionResetError: reset"),
    ],
)
def test_failures_of_the_hub_say_what_to_do(monkeypatch, raised, message):
    def fail(*args, **kwargs):
        raise raised

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(SourceError, match=message) as info:
        resolve("org/x", revision="v9")
    assert info.value.__cause__ is raised


def test_offline_from_a_cache_made_by_hand(tmp_path, monkeypatch, tiny_model):
    """No fake here: huggingface_hub itself, switched offline."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    cache = tmp_path / "cache"
    commit = "0" * 40
    repository = cache / "models--org--tiny"
    shutil.copytree(tiny_model, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)

    files = resolve("org/tiny", cache_path=cache)
    assert names(files) == ["model.safetensors"]
    assert files.directory == repository / "snapshots" / commit
    with pytest.raises(SourceError, match="HF_HUB_OFFLINE") as info:
        resolve("org/other", cache_path=cache)
    assert str(cache) in str(info.value)
    assert "hf download org/other" in str(info.value)
