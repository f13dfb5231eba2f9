"""The whole road, from a model id to a model with its tokenizer and plan."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tramontane.errors import (
    CheckpointError,
    ConfigError,
    MemoryPlanError,
    MissingPluginError,
    ModelKindError,
    SourceError,
)
from tramontane.loading import dtype as dtype_module
from tramontane.loading import loader as loader_module
from tramontane.loading.device import Room
from tramontane.loading.draft import Draft
from tramontane.loading.loader import LoadRequest, load_text
from tramontane.loading.plan import CacheRequest
from tramontane.nn import NarrowLinear, PackedLinear
from tramontane_testkit.data import data_path

from .conftest import tiny_config, tiny_tensors, write_tokenizer  # noqa: TID252


@pytest.fixture
def load(tiny_model, plugins):
    def load(**options):
        options = {"model_id": str(tiny_model), "plugins": plugins, **options}
        return load_text(LoadRequest(**options))

    return load


def change_config(directory: Path, **changes) -> None:
    (directory / "config.json").write_text(json.dumps(tiny_config(**changes)))


def test_a_model_is_ready_with_all_that_the_engine_needs(load):
    calls = []
    loaded = load(on_progress=lambda *call: calls.append(call))
    assert loaded.architecture.name == "Tiny"
    for name, parameter in loaded.model.named_parameters():
        assert torch.equal(parameter, tiny_tensors()[name])
    assert not loaded.model.training
    assert loaded.config.hidden_size == 16
    assert loaded.dtype is torch.float32
    assert loaded.weight_bytes == sum(t.nbytes for t in tiny_tensors().values()) == calls[-1][1]
    assert loaded.max_seq_len == 64
    assert loaded.plan.num_blocks == 16 * 2
    assert loaded.tokenizer.encode("w5 w6", add_special_tokens=False) == [5, 6]
    assert loaded.chat_template is None
    assert loaded.generation_config == {}


def test_end_tokens_come_from_every_source(load, tiny_model):
    # 2 from config and tokenizer, 3 is <|im_end|>
    assert load().eos_token_ids == {2, 3}
    change_config(tiny_model, eos_token_id=[4, 5])
    (tiny_model / "generation_config.json").write_text('{"eos_token_id": 9, "top_p": 0.5}')
    loaded = load()
    assert loaded.eos_token_ids == {2, 3, 4, 5, 9}
    assert loaded.generation_config["top_p"] == 0.5
    change_config(tiny_model, eos_token_id="two")
    with pytest.raises(ConfigError, match="eos_token_id"):
        load()


@pytest.mark.parametrize(("name", "dtype"), [("BF16", torch.bfloat16), ("f16", torch.float16)])
def test_a_dtype_is_honoured(load, name, dtype):
    loaded = load(dtype=name)
    assert {p.dtype for p in loaded.model.parameters()} == {loaded.dtype} == {dtype}


def test_weights_that_kernels_read_narrow_stay_so(load, tiny_model, monkeypatch):
    """On a CPU that multiplies BF16 itself, too; and the plan counts them as they are."""
    stored = {name: tensor.bfloat16() for name, tensor in tiny_tensors().items()}
    save_file(stored, tiny_model / "model.safetensors")
    pair = (torch.bfloat16, torch.float32)
    monkeypatch.setattr(dtype_module, "multiplies", lambda dtype, device: True)
    monkeypatch.setattr(dtype_module, "multiplies_narrow", lambda *known: known[:2] == pair)
    inventories = []
    plan = loader_module.plan_memory

    def planned(**known):
        inventories.append(known["inventory"])
        return plan(**known)

    monkeypatch.setattr(loader_module, "plan_memory", planned)
    loaded = load()
    assert loaded.dtype is torch.float32
    assert type(loaded.model.lm_head) is NarrowLinear
    assert loaded.model.lm_head.weight.dtype is torch.bfloat16
    assert not loaded.model.lm_head.exact
    assert load(dtype="F32").model.lm_head.exact
    assert inventories[0].bytes_as(loaded.dtype) == loaded.weight_bytes


@pytest.mark.parametrize("layout", ["sharded", "torch", "file"])
def test_other_layouts_of_the_same_weights(load, tiny_model, layout):
    tensors = tiny_tensors()
    single = tiny_model / "model.safetensors"
    options = {}
    if layout == "file":
        options["model_id"] = str(single)
    else:
        single.unlink()
    if layout == "sharded":
        half = len(tensors) // 2
        parts = [dict(list(tensors.items())[:half]), dict(list(tensors.items())[half:])]
        for number, part in enumerate(parts, 1):
            save_file(part, tiny_model / f"model-0000{number}-of-00002.safetensors")
    elif layout == "torch":
        torch.save(tensors, tiny_model / "pytorch_model.bin")
    loaded = load(**options)
    for name, parameter in loaded.model.named_parameters():
        assert torch.equal(parameter, tensors[name])


def test_a_weight_file_that_carries_everything(load, tmp_path):
    """As GGUF files do: configuration, tokenizer and template inside, weights packed."""
    directory = tmp_path / "packed"
    directory.mkdir()
    save_file(tiny_tensors(), directory / "one.packed")
    loaded = load(model_id=str(directory), files=["one.packed"])
    assert isinstance(loaded.model.lm_head, PackedLinear)
    assert loaded.dtype is torch.float32
    assert loaded.tokenizer.encode("g5") == [1, 5]  # add_bos
    assert loaded.eos_token_ids == {2, 7}
    rendered = loaded.chat_template.render([{"role": "user", "content": "hello"}])
    assert rendered == "hello from the file"


def test_tok_model_id_and_tokenizer_json_replace_the_inner_tokenizer(load, tmp_path, tiny_model):
    directory = tmp_path / "packed"
    directory.mkdir()
    save_file(tiny_tensors(), directory / "one.packed")
    (tiny_model / "chat_template.jinja").write_text("{{ bos_token }} from the directory")
    (tiny_model / "generation_config.json").write_text('{"eos_token_id": 11}')
    loaded = load(model_id=str(directory), tok_model_id=str(tiny_model))
    assert loaded.tokenizer.encode("w5", add_special_tokens=False) == [5]
    assert loaded.eos_token_ids == {2, 3, 7, 11}
    assert loaded.chat_template.render([]) == "<s> from the directory"
    chosen = load(model_id=str(directory), tokenizer_json=str(tiny_model / "tokenizer.json"))
    assert chosen.tokenizer.encode("w5", add_special_tokens=False) == [5]


def test_a_tokenizer_of_another_model_is_refused(load, tmp_path, tiny_model):
    other = tmp_path / "other"
    other.mkdir()
    write_tokenizer(other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] |= {f"x{i}": i for i in range(40, 60)}
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(SourceError, match="60 tokens, the model 40; it belongs to another model"):
        load(tok_model_id=str(other))


# Architectures ----------------------------------------------------------------------------


def test_the_architecture_the_user_names_wins(load, tiny_model):
    change_config(tiny_model, architectures=["SomethingElse"])
    assert load(arch="tiny").architecture.name == "Tiny"


def test_the_first_known_architecture_of_several(load, tiny_model):
    change_config(tiny_model, architectures=["Unheard", "TinyForCausalLM"])
    assert load().architecture.name == "Tiny"


def test_an_unknown_architecture_lists_those_there_are(load, tiny_model):
    change_config(tiny_model, architectures=["UnheardForCausalLM"])
    with pytest.raises(MissingPluginError, match=r"UnheardForCausalLM.*Installed.*Tiny"):
        load()


def test_a_known_architecture_that_is_not_installed_names_the_extra(load, tiny_model):
    change_config(tiny_model, architectures=["LlamaForCausalLM"])
    with pytest.raises(MissingPluginError, match=r"pip install 'tramontane\[llama\]'"):
        load()


@pytest.mark.parametrize("value", [None, [], "TinyForCausalLM", [3]])
def test_a_config_that_names_no_architecture(load, tiny_model, value):
    change_config(tiny_model, architectures=value)
    with pytest.raises(ConfigError, match="give `arch`, one of: Tiny"):
        load()


def test_a_model_of_another_kind(load):
    with pytest.raises(
        ModelKindError, match="TinyVision is one of the vision models, not of the text models"
    ):
        load(arch="TinyVision")


# What may be wrong ------------------------------------------------------------------------


def test_quantized_weights_are_not_taken_for_plain_ones(load, tiny_model):
    change_config(tiny_model, quantization_config={"quant_method": "row8"})
    with pytest.raises(MissingPluginError, match="row8"):
        load()
    change_config(tiny_model, quantization_config={"bits": 4})
    with pytest.raises(ConfigError, match="names no quant_method"):
        load()


def test_the_quantizer_of_the_configuration_reads_the_checkpoint(load, tiny_model):
    plain = load().model.lm_head.weight
    change_config(tiny_model, quantization_config={"quant_method": "doubled", "factor": 2})
    assert torch.equal(load().model.lm_head.weight, plain / 2)


def test_config_and_weights_that_do_not_belong_together(load, tiny_model):
    change_config(tiny_model, hidden_size=32)
    with pytest.raises(CheckpointError, match=r"must have shape \(40, 32\).*gives \(40, 16\)"):
        load()
    change_config(tiny_model, num_hidden_layers=3)
    with pytest.raises(CheckpointError, match=r"lacks 'model\.layers\.2"):
        load()
    change_config(tiny_model, num_hidden_layers=1)
    with pytest.raises(CheckpointError, match=r"no place for 'model\.layers\.1"):
        load()
    change_config(tiny_model, vocab_size=None)
    with pytest.raises(ConfigError, match="vocab_size"):
        load()


def test_missing_and_damaged_files(load, tiny_model):
    weights = tiny_model / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    with pytest.raises(CheckpointError, match="truncated"):
        load()
    weights.write_bytes(whole)
    (tiny_model / "tokenizer.json").unlink()
    with pytest.raises(SourceError, match="tokenizer"):
        load()
    write_tokenizer(tiny_model)
    (tiny_model / "config.json").unlink()
    with pytest.raises(SourceError, match=r"no config\.json; it holds model\.safetensors"):
        load()


def test_a_file_of_a_format_that_is_not_installed(load, tiny_model):
    (tiny_model / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(MissingPluginError, match=r"gguf.*Installed checkpoint formats: .*torch"):
        load(files=["m.gguf"])


def test_memory_is_planned_before_weights_are_bound(load, monkeypatch):
    monkeypatch.setattr(Draft, "bind", lambda *a, **k: pytest.fail("weights were taken"))
    with pytest.raises(MemoryPlanError, match="pa_ctxt_len="):
        load(cache=CacheRequest(context_len=10**12))
    monkeypatch.setattr("tramontane.loading.plan.memory_of", lambda device: Room(4096, 4096))
    with pytest.raises(MemoryPlanError, match=r"4\.0 KiB free of 4\.0 KiB"):
        load()


# Checkpoints that others wrote ------------------------------------------------------------


def llama_plugins():
    pytest.importorskip("tramontane_llama", reason="tramontane-llama is not installed")
    from tramontane.hooks import PluginManager

    return PluginManager([pytest.importorskip("tramontane_llama.plugin")], discover=False)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("safe", [True, False])
def test_a_sharded_checkpoint_of_transformers(tmp_path, tied, safe):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        eos_token_id=2,
    )
    model = transformers.LlamaForCausalLM(config)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if safe:
        model.save_pretrained(tmp_path, max_shard_size="4KB")
        assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
        assert (tmp_path / "model.safetensors.index.json").is_file()
    else:
        config.save_pretrained(tmp_path)
        names = [n for n in state if not (tied and n == "lm_head.weight")]
        config.architectures = ["LlamaForCausalLM"]
        config.save_pretrained(tmp_path)
        shards = [names[::2], names[1::2]]
        for number, shard in enumerate(shards, 1):
            torch.save(
                {n: state[n] for n in shard}, tmp_path / f"pytorch_model-0000{number}-of-00002.bin"
            )
    write_tokenizer(tmp_path)
    loaded = load_text(LoadRequest(model_id=str(tmp_path), plugins=llama_plugins()))
    ours = loaded.model.state_dict()
    assert ours.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(ours[name], tensor)
    assert (loaded.model.lm_head.weight is loaded.model.model.embed_tokens.weight) == tied


def test_tinystories_stores_only_its_head():
    directory = data_path("models", "tinystories-656k")
    loaded = load_text(LoadRequest(model_id=str(directory), plugins=llama_plugins()))
    stored = load_file(directory / "model.safetensors")
    assert "model.embed_tokens.weight" not in stored
    embedding = loaded.model.model.embed_tokens.weight
    assert embedding is loaded.model.lm_head.weight
    assert torch.equal(embedding, stored["lm_head.weight"])
    assert loaded.weight_bytes == sum(t.nbytes for t in stored.values())
    assert loaded.eos_token_ids == {2}
    assert loaded.max_seq_len == 512
