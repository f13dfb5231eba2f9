"""Whole models: names, configuration, row order, shards; against transformers' own weights."""

from __future__ import annotations

import os
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

REPOSITORY = Path(__file__).parents[3]


def data(*parts: str) -> Path:
    """A folder or file of the shared test data; skips where there is none."""
    root = os.environ.get("TRAMONTANE_TEST_DATA")
    folder = Path(root) if root else REPOSITORY.parent / "shared" / "data"
    path = folder.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"no test data at {path}; set TRAMONTANE_TEST_DATA")
    return path


LLAMA: dict[str, Any] = {
    "embedding_length": 64, "block_count": 2, "attention.head_count": 4,
    "attention.head_count_kv": 2, "context_length": 128, "feed_forward_length": 96,
    "attention.layer_norm_rms_epsilon": 1e-5, "rope.dimension_count": 16, "rope.freq_base": 5e5,
}  # fmt: skip


def write(
    path: Path,
    arch: str,
    keys: dict[str, Any],
    tensors: dict[str, np.ndarray | tuple[np.ndarray, G]],
    **more: Any,
) -> Path:
    """A file as the gguf package writes it; ``keys`` get the architecture's prefix."""
    writer = gguf.GGUFWriter(str(path), arch)
    for name, value in {**{f"{arch}.{k}": v for k, v in keys.items()}, **more}.items():
        if isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        else:
            writer.add_array(name, value)
    for name, tensor in tensors.items():
        if isinstance(tensor, tuple):
            writer.add_tensor(name, tensor[0], raw_dtype=tensor[1])
        else:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


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


def opened(*paths: Path) -> Checkpoint:
    return GgufFormat().open(list(paths))


@pytest.mark.parametrize("kind", [G.F32, G.Q8_0, G.BF16])
def test_a_llama_comes_back_as_transformers_has_it(tmp_path: Path, kind: G) -> None:
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
    checkpoint = opened(write(tmp_path / "m.gguf", "llama", LLAMA, tensors))
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


def test_only_q_and_k_are_copied(tmp_path: Path) -> None:
    w = np.zeros((64, 64), np.float32)
    tensors = {"token_embd.weight": w, "blk.0.attn_q.weight": w, "blk.0.attn_v.weight": w}
    path = write(tmp_path / "m.gguf", "llama", LLAMA, tensors)
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


def test_configuration_of_a_llama(tmp_path: Path) -> None:
    embedding = np.zeros((50, 64), np.float32)
    path = write(
        tmp_path / "m.gguf",
        "llama",
        LLAMA,
        {"token_embd.weight": embedding},
        **{"tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2**32 - 1},
    )
    assert opened(path).config() == {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 50,
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 128,
        "rope_theta": 5e5, "rope_scaling": None, "tie_word_embeddings": True,
        "attention_bias": False, "mlp_bias": False, "hidden_act": "silu",
        "intermediate_size": 96, "rms_norm_eps": 1e-5, "sliding_window": None, "bos_token_id": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"rope.scaling.type": "none"}, None),
        ({"rope.scale_linear": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        (
            {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
            {"rope_type": "linear", "factor": 4.0},
        ),
        (
            {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": 4.0,
                "rope.scaling.original_context_length": 32,
                "rope.scaling.yarn_beta_fast": 16.0,
                "rope.scaling.yarn_log_multiplier": 0.1,
            },
            {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 32,
                "beta_fast": 16.0,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
            },
        ),
    ],
)
def test_rope_scaling(tmp_path: Path, keys: dict[str, Any], expected: Any) -> None:
    tensors = {"token_embd.weight": np.zeros((5, 64), np.float32)}
    path = write(tmp_path / "m.gguf", "llama", {**LLAMA, **keys}, tensors)
    assert opened(path).config()["rope_scaling"] == expected


def llama3_factors(factor: float, head_dim: int = 64, theta: float = 5e5) -> np.ndarray:
    """What a converter stores: plain frequencies over those that transformers computes."""
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = transformers.LlamaConfig(
        head_dim=head_dim, hidden_size=4 * head_dim, num_attention_heads=4,
        rope_parameters={
            "rope_type": "llama3", "rope_theta": theta, "factor": factor, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        },
    )  # fmt: skip
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 1.0 / theta ** (torch.arange(0, head_dim, 2).float() / head_dim)
    return (plain / scaled).numpy()


def test_rope_factors_of_llama_3(tmp_path: Path) -> None:
    keys = {**LLAMA, "attention.key_length": 64, "rope.dimension_count": 64}
    embedding = np.zeros((5, 64), np.float32)
    for factor in (8.0, 32.0):
        tensors = {"token_embd.weight": embedding, "rope_freqs.weight": llama3_factors(factor)}
        checkpoint = opened(write(tmp_path / "m.gguf", "llama", keys, tensors))
        scaling = checkpoint.config()["rope_scaling"]
        assert scaling["factor"] == pytest.approx(factor, rel=1e-5)
        assert {k: v for k, v in scaling.items() if k != "factor"} == {
            "rope_type": "llama3",
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
        assert checkpoint.names() == ["model.embed_tokens.weight"]


def test_other_rope_factors_are_kept_as_they_are(tmp_path: Path) -> None:
    factors = np.linspace(1, 3, 8, dtype=np.float32)
    tensors = {"token_embd.weight": np.zeros((5, 64), np.float32), "rope_freqs.weight": factors}
    scaling = opened(write(tmp_path / "m.gguf", "llama", LLAMA, tensors)).config()["rope_scaling"]
    assert scaling["rope_type"] == "longrope"
    assert scaling["long_factor"] == scaling["short_factor"] == factors.tolist()
    assert scaling["attention_factor"] == 1.0
    tensors["rope_freqs.weight"] = np.ones(8, np.float32)
    assert (
        opened(write(tmp_path / "m.gguf", "llama", LLAMA, tensors)).config()["rope_scaling"] is None
    )
    tensors["rope_freqs.weight"] = -factors
    with pytest.raises(CheckpointError, match="not positive"):
        opened(write(tmp_path / "m.gguf", "llama", LLAMA, tensors)).config()


def test_experts_stacked_and_one_by_one(tmp_path: Path) -> None:
    keys = {**LLAMA, "expert_count": 2, "expert_used_count": 1}
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


def test_fused_attention_of_phi2_is_three_views(tmp_path: Path) -> None:
    keys = {**LLAMA, "attention.layer_norm_epsilon": 1e-6, "rope.dimension_count": 8}
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


def test_phi3_long_rope_and_gemma_norms(tmp_path: Path) -> None:
    long, short = np.linspace(1, 9, 8), np.linspace(1, 2, 8)
    tensors = {
        "token_embd.weight": np.zeros((5, 64), np.float32),
        "rope_factors_long.weight": long.astype(np.float32),
        "rope_factors_short.weight": short.astype(np.float32),
        "blk.0.ffn_up.weight": np.zeros((192, 64), np.float32),
    }
    keys = {**LLAMA, "rope.scaling.original_context_length": 32, "rope.scaling.attn_factor": 1.25}
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
    checkpoint = opened(write(tmp_path / "g.gguf", "gemma2", LLAMA, norms))
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
        name = f"{role}.weight" if whole else f"blk.3.{role}.weight"
        name = name.replace("exp_probs_b.weight", "exp_probs_b.bias")
        assert names.to_gguf(names.to_hf(name)) == name
    assert names.to_hf("blk.0.novelty.weight") == "blk.0.novelty.weight"
    assert names.to_hf("odd") == names.to_gguf("odd") == "odd"


def test_buffers_and_layers_for_prediction_are_left_out(tmp_path: Path) -> None:
    w = np.zeros((4, 64), np.float32)
    tensors = {"token_embd.weight": w, "blk.0.attn_rot_embd.weight": w, "blk.2.attn_v.weight": w}
    keys = {**LLAMA, "block_count": 3, "nextn_predict_layers": 1}
    checkpoint = opened(write(tmp_path / "m.gguf", "glm4moe", keys, tensors))
    assert checkpoint.names() == ["model.embed_tokens.weight"]
    assert checkpoint.config()["num_hidden_layers"] == 2


def test_smollm3_leaves_every_fourth_layer_unrotated(tmp_path: Path) -> None:
    keys = {**LLAMA, "block_count": 5}
    tensors = {"token_embd.weight": np.zeros((5, 64), np.float32)}
    config = opened(write(tmp_path / "m.gguf", "smollm3", keys, tensors)).config()
    assert config["architectures"] == ["SmolLM3ForCausalLM"]
    assert config["no_rope_layers"] == [1, 1, 1, 0, 1]


def test_stories260k() -> None:
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


# Shards ---------------------------------------------------------------------------------------


def shards(folder: Path, count: int = 3, **changes: Any) -> list[Path]:
    """A model in ``count`` files; ``changes`` override split keys of the last one."""
    paths = []
    for number in range(count):
        keys: dict[str, Any] = {
            "split.no": number, "split.count": count, "split.tensors.count": count,
        }  # fmt: skip
        if number == count - 1:
            keys |= changes
        name = "token_embd.weight" if number == 0 else f"blk.{number - 1}.attn_v.weight"
        paths.append(
            write(
                folder / f"m-{number + 1:05d}-of-{count:05d}.gguf",
                "llama",
                LLAMA if number == 0 else {},
                {name: np.full((4, 64), number, np.float32)},
                **keys,
            )
        )
    return paths


NAMES = [
    "model.embed_tokens.weight",
    "model.layers.0.self_attn.v_proj.weight",
    "model.layers.1.self_attn.v_proj.weight",
]


def test_shards_are_one_model_in_any_order(tmp_path: Path) -> None:
    paths = shards(tmp_path)
    for given in (paths, paths[::-1], paths[:1], paths[2:], [*paths, paths[0]]):
        checkpoint = opened(*given)
        assert checkpoint.names() == NAMES
        assert checkpoint.config()["hidden_size"] == 64
        last = checkpoint.tensor(NAMES[2])
        assert isinstance(last, Tensor)
        assert last.unique().tolist() == [2.0]


def test_shards_that_do_not_belong_together(tmp_path: Path) -> None:
    paths = shards(tmp_path)
    with pytest.raises(CheckpointError, match=r"set of 3 .split.count., but 2 files"):
        opened(*paths[:2])
    paths[1].rename(tmp_path / "elsewhere.gguf")
    with pytest.raises(CheckpointError, match=r"missing beside it: m-00002-of-00003.gguf"):
        opened(paths[0])
    alone = tmp_path / "alone.gguf"
    paths[0].rename(alone)
    with pytest.raises(CheckpointError, match=r"set of 3 .split.count., but 1 files"):
        opened(alone)
    with pytest.raises(CheckpointError, match="no GGUF file"):
        opened()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split.count": 4}, "set of 4 .split.count., but 3 files"),
        ({"split.no": 1}, "are both shard 1"),
        ({"split.no": 7}, "split.no is 7, of 3"),
        ({"split.count": "3"}, "split.count must be a whole number"),
    ],
)
def test_shards_numbered_wrongly(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        opened(*shards(tmp_path, **changes))


def test_shards_with_tensors_missing_or_twice(tmp_path: Path) -> None:
    paths = shards(tmp_path)
    write(paths[2], "llama", {}, {}, **{"split.no": 2, "split.count": 3})
    with pytest.raises(CheckpointError, match="hold 2 tensors together, not the 3"):
        opened(*paths)
    twice = {"blk.0.attn_v.weight": np.zeros((4, 64), np.float32)}
    write(paths[2], "llama", {}, twice, **{"split.no": 2, "split.count": 3})
    with pytest.raises(CheckpointError, match=r"attn_v.weight is in both"):
        opened(*paths)


# What files may say wrongly ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embedding_length": None}, "lacks the metadata key llama.embedding_length"),
        ({"block_count": "two"}, "llama.block_count must be a whole number, not 'two'"),
        ({"attention.head_count": 0}, "llama.attention.head_count must be above zero"),
        ({"attention.head_count_kv": [2, 1]}, "one whole number for all layers"),
        ({"rope.freq_base": float("inf")}, "must be finite"),
        ({"rope.scaling.type": "spiral"}, "must be none, linear or yarn"),
        ({"attention.layer_norm_rms_epsilon": None}, "lacks .*layer_norm_rms_epsilon"),
    ],
)
def test_metadata_of_the_wrong_kind(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    keys = {name: value for name, value in {**LLAMA, **changes}.items() if value is not None}
    tensors = {"token_embd.weight": np.zeros((5, 64), np.float32)}
    checkpoint = opened(write(tmp_path / "m.gguf", "llama", keys, tensors))
    with pytest.raises(CheckpointError, match=message):
        checkpoint.config()


def test_per_layer_values_that_agree_are_one(tmp_path: Path) -> None:
    keys = {**LLAMA, "attention.head_count_kv": [2, 2]}
    tensors = {"token_embd.weight": np.zeros((5, 64), np.float32)}
    config = opened(write(tmp_path / "m.gguf", "llama", keys, tensors)).config()
    assert config["num_key_value_heads"] == 2


def test_tensors_that_do_not_fit_the_heads(tmp_path: Path) -> None:
    w = np.zeros((60, 64), np.float32)
    tensors = {"token_embd.weight": w, "blk.0.attn_q.weight": w}
    checkpoint = opened(write(tmp_path / "m.gguf", "llama", LLAMA, tensors))
    with pytest.raises(CheckpointError, match="does not divide into 4 heads"):
        checkpoint.names()
    keys = {**LLAMA, "attention.layer_norm_epsilon": 1e-5}
    tensors = {"blk.0.attn_qkv.weight": w[:59]}
    checkpoint = opened(write(tmp_path / "m.gguf", "phi2", keys, tensors))
    with pytest.raises(CheckpointError, match="59 rows does not divide"):
        checkpoint.names()


def test_two_tensors_of_one_name(tmp_path: Path) -> None:
    w = np.zeros((64,), np.float32)
    tensors = {"blk.0.ffn_norm.weight": w, "blk.0.post_attention_norm.weight": w}
    checkpoint = opened(write(tmp_path / "m.gguf", "glm4moe", LLAMA, tensors))
    with pytest.raises(CheckpointError, match=r"are both .*post_attention_layernorm"):
        checkpoint.names()


def test_asking_for_what_is_not_there(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", "llama", LLAMA, {})
    with pytest.raises(CheckpointError, match=r"holds no tensor for lm_head.weight"):
        opened(path).tensor("lm_head.weight")
    with pytest.raises(CheckpointError, match=r"no token_embd.weight: it is a vocabulary"):
        opened(path).config()


# Architectures ----------------------------------------------------------------------------------


def test_an_unknown_architecture_lists_the_known(tmp_path: Path) -> None:
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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = PluginManager([ForeignPlugin], discover=False)
    targets = {"Foreign": Foreign, "Mistaken": Mistaken}
    monkeypatch.setattr(manager, "resolve", lambda spec: targets[spec.name])
    monkeypatch.setattr(families, "plugin_manager", lambda: manager)
    w = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    tensors = {"token_embd.weight": w, "blk.0.attn_q.weight": w, "blk.0.ffn_up.weight": w}
    path = write(tmp_path / "m.gguf", "foreign", {**LLAMA, "logit_scale": 0.5}, tensors)
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
    path = write(tmp_path / "n.gguf", "mistaken", LLAMA, tensors)
    with pytest.raises(PluginError, match=r"may hold name, architecture.*rolls"):
        opened(path).names()
