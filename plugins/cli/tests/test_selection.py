from __future__ import annotations

from pathlib import Path

import pytest

from tramontane import Which
from tramontane.errors import MissingPluginError, SourceError, ValidationError
from tramontane.hooks import ModelSpec, PluginManager, hookimpl
from tramontane_cli.selection import default_model_id, select


def test_a_hub_repository_and_a_travelling_model_are_plain():
    for name in ("mistralai/Mistral-7B-Instruct-v0.1", "tramontane/demo"):
        which = select(name, arch="llama", dtype="F32")
        assert isinstance(which, Which.Plain)
        assert (which.model_id, str(which.arch), str(which.dtype)) == (name, "llama", "f32")


def test_a_directory_is_plain(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "extra.gguf").touch()
    assert select(str(tmp_path)).model_id == str(tmp_path)
    assert isinstance(select(str(tmp_path)), Which.Plain)


def test_a_gguf_file(tmp_path):
    file = tmp_path / "tiny.Q4_K.gguf"
    file.touch()
    which = select(str(file), tok_model="someone/tokenizer")
    assert isinstance(which, Which.GGUF)
    assert which.quantized_model_id == str(tmp_path)
    assert which.quantized_filename in (file.name, [file.name])
    assert which.tok_model_id == "someone/tokenizer"


def test_a_file_of_a_repository():
    which = select("TheBloke/Tiny-GGUF:tiny.Q4_K_M.gguf")
    assert which.quantized_model_id == "TheBloke/Tiny-GGUF"
    assert which.quantized_filename in ("tiny.Q4_K_M.gguf", ["tiny.Q4_K_M.gguf"])


def test_a_uqff_file_belongs_to_the_model_beside_it(tmp_path):
    file = tmp_path / "q4k-0.uqff"
    file.touch()
    which = select(str(file), arch="llama")
    assert isinstance(which, Which.Plain)
    assert (which.model_id, which.uqff_files) == (str(tmp_path), ["q4k-0.uqff"])
    assert select("someone/model:q4k-0.uqff").uqff_files == ["q4k-0.uqff"]


def test_what_is_said_of_layers_and_statistics(tmp_path):
    (tmp_path / "tiny.gguf").touch()
    layers = Path("layers.yml")
    for model in ("a/b", str(tmp_path)):
        assert select(model, topology=layers).topology == "layers.yml"
    assert select("a/b", imatrix=Path("m.dat")).imatrix == "m.dat"
    with pytest.raises(SourceError, match="--imatrix serves"):
        select(str(tmp_path), imatrix=Path("m.dat"))


def test_a_directory_with_one_gguf_file(tmp_path):
    (tmp_path / "tiny.gguf").touch()
    assert select(str(tmp_path)).quantized_filename in ("tiny.gguf", ["tiny.gguf"])
    (tmp_path / "other.gguf").touch()
    with pytest.raises(SourceError, match=r"other\.gguf, tiny\.gguf"):
        select(str(tmp_path))


@pytest.mark.parametrize("name", ["./nothing", "/no/such/model", "missing.gguf", "~/no such"])
def test_a_path_that_is_not_there(name):
    with pytest.raises(SourceError, match="does not exist"):
        select(name)


def test_a_file_that_is_no_model(tmp_path):
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(SourceError, match="name the directory"):
        select(str(file))


def test_arch_has_no_place_with_gguf(tmp_path):
    (tmp_path / "tiny.gguf").touch()
    with pytest.raises(SourceError, match="--arch llama"):
        select(str(tmp_path), arch="llama")


def test_an_unknown_dtype_lists_those_there_are():
    with pytest.raises(ValidationError, match="bf16"):
        select("a/b", dtype="int3")


def test_the_default_is_the_one_a_plugin_marks():
    class Models:
        @hookimpl
        def tramontane_models(self):
            return [
                ModelSpec(name="x/other", package="x", path="other"),
                ModelSpec(name="x/chosen", package="x", path="chosen", default=True),
            ]

    assert default_model_id(PluginManager([Models()], discover=False)) == "x/chosen"
    with pytest.raises(MissingPluginError, match=r"tramontane\[demo\]"):
        default_model_id(PluginManager(discover=False))
