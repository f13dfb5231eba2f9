"""Whole models: names and row order, against transformers' own weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as G
from torch import Tensor

from tramontane.errors import CheckpointError, ConfigError, PluginError
from tramontane.hooks import ArchitectureSpec, PluginManager, hookimpl
from tramontane.protocols import Checkpoint
from tramontane_gguf import families
from tramontane_gguf.blocks import GgmlWeight
from tramontane_gguf.checkpoint import GgufFormat
from tramontane_gguf.families import FAMILIES
from tramontane_gguf.tensor_names import (
    TensorNames,
    adjacent_pair_order,
    half_rotation_order,
    parse,
)

Writer = Callable[..., Path]
Finder = Callable[..., Path]
Sharder = Callable[..., list[Path]]


def opened(*paths: Path) -> Checkpoint:
    return GgufFormat().open(list(paths))


def converted(state: dict[str, Tensor], names: TensorNames, heads: dict[str, int], kind: G) -> Any:
    """A Hugging Face state dict as a converter writes it: renamed, q and k rows rearranged."""
    tensors: dict[str, Any] = {}
    for name, tensor in state.items():
        target = names.to_gguf(name)
        assert target != name, name
        parsed = parse(target)
        if parsed is not None and parsed.role in heads:
            tensor = tensor[adjacent_pair_order(tensor.shape[0], heads[parsed.role])]
        array = tensor.float().numpy()
        if array.ndim == 2 and kind is not G.F32:
            tensors[target] = (gguf.quantize(array, kind), kind)
        else:
            tensors[target] = array
    return tensors


@pytest.mark.parametrize("kind", [G.F32, G.Q8_0, G.BF16])
def test_a_llama_comes_back_as_transformers_has_it(
    tmp_path: Path, kind: G, write: Writer, llama: dict[str, Any]
) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=50, tie_word_embeddings=False, attention_bias=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    names = TensorNames(FAMILIES["llama"])
    tensors = converted(state, names, {"attn_q": 4, "attn_k": 2}, kind)
    checkpoint = opened(write(tmp_path / "m.gguf", "llama", llama, tensors))
    assert isinstance(checkpoint, Checkpoint)
    assert sorted(checkpoint.names()) == sorted(state)
    for name, expected in state.items():
        given = checkpoint.tensor(name)
        if isinstance(given, GgmlWeight):
            assert given.format == "gguf.q8_0"
            packed = gguf.quantize(expected.numpy(), G.Q8_0)
            assert np.array_equal(given.blocks.numpy(), packed)
        else:
            wanted = torch.bfloat16 if kind is G.BF16 and given.ndim == 2 else torch.float32
            assert given.dtype == wanted
            assert torch.equal(given, expected.to(wanted))
    assert checkpoint.config()["attention_bias"] is True
    assert checkpoint.tokenizer() is None


def test_row_orders_are_inverse_and_turn_one_rotation_into_the_other() -> None:
    half, pair = half_rotation_order(32, 4), adjacent_pair_order(32, 4)
    assert torch.equal(half[pair], torch.arange(32))
    assert half_rotation_order(8, 1).tolist() == [0, 2, 4, 6, 1, 3, 5, 7]


def test_only_q_and_k_are_copied(tmp_path: Path, write: Writer, llama: dict[str, Any]) -> None:
    w = np.zeros((64, 64), np.float32)
    tensors = {"token_embd.weight": w, "blk.0.attn_q.weight": w, "blk.0.attn_v.weight": w}
    path = write(tmp_path / "m.gguf", "llama", llama, tensors)
    checkpoint = GgufFormat().open([path])
    (container,) = checkpoint._containers
    start, end = container.data.data_ptr(), container.data.data_ptr() + container.data.numel()

    def mapped(name: str) -> bool:
        tensor = checkpoint.tensor(name)
        assert isinstance(tensor, Tensor)
        return start <= tensor.data_ptr() < end

    assert mapped("model.layers.0.self_attn.v_proj.weight")
    assert mapped("model.embed_tokens.weight")
    assert not mapped("model.layers.0.self_attn.q_proj.weight")
    assert checkpoint.nbytes == 3 * w.nbytes
    tensor = checkpoint.tensor("model.layers.0.self_attn.v_proj.weight")
    checkpoint.close()
    assert isinstance(tensor, Tensor)
    assert tensor.sum() == 0


def test_experts_stacked_and_one_by_one(
    tmp_path: Path, write: Writer, llama: dict[str, Any]
) -> None:
    keys = {**llama, "expert_count": 2, "expert_used_count": 1}
    stack = np.random.default_rng(0).normal(size=(2, 96, 64)).astype(np.float32)
    tensors: dict[str, Any] = {
        "token_embd.weight": np.zeros((5, 64), np.float32),
        "blk.0.ffn_gate_inp.weight": np.zeros((2, 64), np.float32),
        "blk.0.ffn_gate_exps.weight": (gguf.quantize(stack, G.Q4_0), G.Q4_0),
        "blk.1.ffn_up.0.weight": stack[0],
        "blk.1.ffn_up.1.weight": stack[1],
    }
    checkpoint = opened(write(tmp_path / "m.gguf", "llama", keys, tensors))
    config = checkpoint.config()
    assert config["architectures"] == ["MixtralForCausalLM"]
    assert config["model_type"] == "mixtral"
    assert (config["num_local_experts"], config["num_experts_per_tok"]) == (2, 1)
    moe = "model.layers.{}.block_sparse_moe"
    assert checkpoint.names() == [
        "model.embed_tokens.weight",
        f"{moe.format(0)}.gate.weight",
        f"{moe.format(0)}.experts.w1.weight",
        f"{moe.format(1)}.experts.0.w3.weight",
        f"{moe.format(1)}.experts.1.w3.weight",
    ]
    packed = checkpoint.tensor(f"{moe.format(0)}.experts.w1.weight")
    assert isinstance(packed, GgmlWeight)
    assert packed.shape == (2, 96, 64)
    expected = gguf.dequantize(gguf.quantize(stack, G.Q4_0), G.Q4_0)
    assert np.array_equal(packed.dequantize().numpy(), expected)


def test_fused_attention_of_phi2_is_three_views(
    tmp_path: Path, write: Writer, llama: dict[str, Any]
) -> None:
    keys = {**llama, "attention.layer_norm_epsilon": 1e-6, "rope.dimension_count": 8}
    del keys["attention.layer_norm_rms_epsilon"]
    fused = np.arange(128 * 64, dtype=np.float32).reshape(128, 64)
    tensors: dict[str, Any] = {
        "token_embd.weight": np.zeros((5, 64), np.float32),
        "blk.0.attn_qkv.weight": (gguf.quantize(fused, G.Q8_0), G.Q8_0),
        "blk.0.attn_qkv.bias": np.arange(128, dtype=np.float32),
    }
    checkpoint = opened(write(tmp_path / "m.gguf", "phi2", keys, tensors))
    config = checkpoint.config()
    assert config["partial_rotary_factor"] == 0.5
    assert config["layer_norm_eps"] == 1e-6
    layer = "model.layers.0.self_attn"
    whole = torch.from_numpy(gguf.dequantize(gguf.quantize(fused, G.Q8_0), G.Q8_0))
    for part, rows in (("q", slice(0, 64)), ("k", slice(64, 96)), ("v", slice(96, 128))):
        weight = checkpoint.tensor(f"{layer}.{part}_proj.weight")
        assert isinstance(weight, GgmlWeight)
        assert torch.equal(weight.dequantize(), whole[rows])
        bias = checkpoint.tensor(f"{layer}.{part}_proj.bias")
        assert isinstance(bias, Tensor)
        assert torch.equal(bias, torch.arange(128.0)[rows])


def test_phi3_long_rope_and_gemma_norms(
    tmp_path: Path, write: Writer, llama: dict[str, Any]
) -> None:
    long, short = np.linspace(1, 9, 8), np.linspace(1, 2, 8)
    tensors = {
        "token_embd.weight": np.zeros((5, 64), np.float32),
        "rope_factors_long.weight": long.astype(np.float32),
        "rope_factors_short.weight": short.astype(np.float32),
        "blk.0.ffn_up.weight": np.zeros((192, 64), np.float32),
    }
    keys = {**llama, "rope.scaling.original_context_length": 32, "rope.scaling.attn_factor": 1.25}
    checkpoint = opened(write(tmp_path / "p.gguf", "phi3", keys, tensors))
    scaling = checkpoint.config()["rope_scaling"]
    assert scaling["rope_type"] == "longrope"
    assert scaling["long_factor"] == pytest.approx(long.tolist())
    assert (scaling["factor"], scaling["attention_factor"]) == (4.0, 1.25)
    assert "model.layers.0.mlp.gate_up_proj.weight" in checkpoint.names()

    norms = {
        "token_embd.weight": np.zeros((5, 64), np.float32),
        "blk.0.attn_norm.weight": np.full(64, 1.5, np.float32),
        "blk.0.ffn_norm.weight": np.full(64, 1.25, np.float32),
    }
    checkpoint = opened(write(tmp_path / "g.gguf", "gemma2", llama, norms))
    for name, value in (("input", 0.5), ("pre_feedforward", 0.25)):
        norm = checkpoint.tensor(f"model.layers.0.{name}_layernorm.weight")
        assert isinstance(norm, Tensor)
        assert torch.equal(norm, torch.full((64,), value))


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
@pytest.mark.parametrize("moe", [False, True])
def test_every_family_names_tensors_both_ways(family: families.Family, moe: bool) -> None:
    names = TensorNames(family, moe=moe)
    per_expert = moe and family.moe_roles.get("ffn_gate")
    for role in family.role_names(moe):
        replaced = "post_attention_norm" in family.roles and role == "ffn_norm"
        replaced = replaced and family.role_names(moe)[role] == "post_attention_layernorm"
        if replaced or (per_expert and role in ("ffn_gate", "ffn_up", "ffn_down")):
            continue
        whole = role in ("token_embd", "token_embd_norm", "output_norm", "output")
        suffix = families.BARE.get(role, ".weight")
        name = f"{role}{suffix}" if whole else f"blk.3.{role}{suffix}"
        assert names.to_gguf(names.to_hf(name)) == name
    assert names.to_hf("blk.0.novelty.weight") == "blk.0.novelty.weight"
    assert names.to_hf("odd") == names.to_gguf("odd") == "odd"


def test_buffers_and_layers_for_prediction_are_left_out(
    tmp_path: Path, write: Writer, llama: dict[str, Any]
) -> None:
    w = np.zeros((4, 64), np.float32)
    tensors = {"token_embd.weight": w, "blk.0.attn_rot_embd.weight": w, "blk.2.attn_v.weight": w}
    keys = {**llama, "block_count": 3, "nextn_predict_layers": 1}
    checkpoint = opened(write(tmp_path / "m.gguf", "glm4moe", keys, tensors))
    assert checkpoint.names() == ["model.embed_tokens.weight"]
    assert checkpoint.config()["num_hidden_layers"] == 2


def test_stories260k(data: Finder) -> None:
    checkpoint = opened(data("models", "stories260k", "stories260K.gguf"))
    config = checkpoint.config()
    wanted = {
        "vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 5, "num_attention_heads": 8,
        "num_key_value_heads": 4, "head_dim": 8, "intermediate_size": 172, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 2048, "tie_word_embeddings": False, "rope_theta": 10000.0,
        "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    assert {name: config[name] for name in wanted} == wanted
    assert len(checkpoint.names()) == 48
    for name in checkpoint.names():
        tensor = checkpoint.tensor(name)
        assert isinstance(tensor, Tensor)
        assert tensor.dtype == torch.float32
        assert tensor.isfinite().all()
        if name.endswith("norm.weight"):
            assert tensor.shape == (64,)
            assert 0.05 < tensor.abs().mean() < 20
    embedded = checkpoint.tokenizer()
    assert embedded is not None
    assert (embedded.bos_token, embedded.eos_token, embedded.unk_token) == ("<s>", "</s>", "<unk>")
    ids = embedded.tokenizer.encode("Once upon a time", add_special_tokens=False).ids
    assert embedded.tokenizer.decode(ids) == "Once upon a time"
    assert len(ids) < 10


def test_tensors_that_do_not_fit_the_heads(
    tmp_path: Path, write: Writer, llama: dict[str, Any]
) -> None:
    w = np.zeros((60, 64), np.float32)
    tensors = {"token_embd.weight": w, "blk.0.attn_q.weight": w}
    checkpoint = opened(write(tmp_path / "m.gguf", "llama", llama, tensors))
    with pytest.raises(CheckpointError, match="does not divide into 4 heads"):
        checkpoint.names()
    keys = {**llama, "attention.layer_norm_epsilon": 1e-5}
    tensors = {"blk.0.attn_qkv.weight": w[:59]}
    checkpoint = opened(write(tmp_path / "m.gguf", "phi2", keys, tensors))
    with pytest.raises(CheckpointError, match="59 rows does not divide"):
        checkpoint.names()


def test_two_tensors_of_one_name(tmp_path: Path, write: Writer, llama: dict[str, Any]) -> None:
    w = np.zeros((64,), np.float32)
    tensors = {"blk.0.ffn_norm.weight": w, "blk.0.post_attention_norm.weight": w}
    checkpoint = opened(write(tmp_path / "m.gguf", "glm4moe", llama, tensors))
    with pytest.raises(CheckpointError, match=r"are both .*post_attention_layernorm"):
        checkpoint.names()


def test_asking_for_what_is_not_there(tmp_path: Path, write: Writer, llama: dict[str, Any]) -> None:
    path = write(tmp_path / "m.gguf", "llama", llama, {})
    with pytest.raises(CheckpointError, match=r"holds no tensor for lm_head.weight"):
        opened(path).tensor("lm_head.weight")
    with pytest.raises(CheckpointError, match=r"no token_embd.weight: it is a vocabulary"):
        opened(path).config()


def test_an_unknown_architecture_lists_the_known(tmp_path: Path, write: Writer) -> None:
    path = write(tmp_path / "m.gguf", "lama", {}, {"t": np.zeros(4, np.float32)})
    with pytest.raises(ConfigError, match=r"'lama' .did you mean llama.*known are .*qwen3"):
        opened(path).names()


class Foreign:
    """An architecture from elsewhere, which knows nothing of this distribution."""

    GGUF: ClassVar[dict[str, Any]] = {
        "roles": {"ffn_up": "mlp.fc1"},
        "interleaved": True,
        "fields": {"logit_scale": "logit_scale"},
    }


class Mistaken:
    GGUF: ClassVar[dict[str, Any]] = {"rolls": {}}


class ForeignPlugin:
    @staticmethod
    @hookimpl
    def tramontane_architectures() -> list[ArchitectureSpec]:
        here = f"{__name__}:{{}}"
        return [
            ArchitectureSpec(
                name="Foreign",
                hf_names=("ForeignForCausalLM",),
                gguf_names=("foreign",),
                target=here.format("Foreign"),
            ),
            ArchitectureSpec(
                name="Mistaken", gguf_names=("mistaken",), target=here.format("Mistaken")
            ),
        ]


def test_an_architecture_may_bring_its_own_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Writer, llama: dict[str, Any]
) -> None:
    manager = PluginManager([ForeignPlugin], discover=False)
    targets = {"Foreign": Foreign, "Mistaken": Mistaken}
    monkeypatch.setattr(manager, "resolve", lambda spec: targets[spec.name])
    monkeypatch.setattr(families, "plugin_manager", lambda: manager)
    w = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    tensors = {"token_embd.weight": w, "blk.0.attn_q.weight": w, "blk.0.ffn_up.weight": w}
    path = write(tmp_path / "m.gguf", "foreign", {**llama, "logit_scale": 0.5}, tensors)
    checkpoint = opened(path)
    assert checkpoint.names()[1:] == [
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.mlp.fc1.weight",
    ]
    config = checkpoint.config()
    assert config["architectures"] == ["ForeignForCausalLM"]
    assert config["logit_scale"] == 0.5
    q = checkpoint.tensor("model.layers.0.self_attn.q_proj.weight")
    assert isinstance(q, Tensor)
    assert torch.equal(q, torch.from_numpy(w)[half_rotation_order(64, 4)])
    path = write(tmp_path / "n.gguf", "mistaken", llama, tensors)
    with pytest.raises(PluginError, match=r"may hold name, architecture.*rolls"):
        opened(path).names()
