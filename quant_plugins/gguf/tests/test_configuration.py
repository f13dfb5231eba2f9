"""``config.json`` from metadata, and metadata of the wrong kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tramontane.errors import CheckpointError
from tramontane.protocols import Checkpoint
from tramontane_gguf.checkpoint import GgufFormat

Writer = Callable[..., Path]
Finder = Callable[..., Path]
Sharder = Callable[..., list[Path]]


def opened(*paths: Path) -> Checkpoint:
    return GgufFormat().open(list(paths))


def test_configuration_of_a_llama(tmp_path: Path, write: Writer, llama: dict[str, Any]) -> None:
    embedding = np.zeros((50, 64), np.float32)
    path = write(
        tmp_path / "m.gguf",
        "llama",
        llama,
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
def test_rope_scaling(
    tmp_path: Path, keys: dict[str, Any], expected: Any, write: Writer, llama: dict[str, Any]
) -> None:
    tensors = {"token_embd.weight": np.zeros((5, 64), np.float32)}
    path = write(tmp_path / "m.gguf", "llama", {**llama, **keys}, tensors)
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


def test_rope_factors_of_llama_3(tmp_path: Path, write: Writer, llama: dict[str, Any]) -> None:
    keys = {**llama, "attention.key_length": 64, "rope.dimension_count": 64}
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


def test_other_rope_factors_are_kept_as_they_are(
    tmp_path: Path, write: Writer, llama: dict[str, Any]
) -> None:
    factors = np.linspace(1, 3, 8, dtype=np.float32)
    tensors = {"token_embd.weight": np.zeros((5, 64), np.float32), "rope_freqs.weight": factors}
    scaling = opened(write(tmp_path / "m.gguf", "llama", llama, tensors)).config()["rope_scaling"]
    assert scaling["rope_type"] == "longrope"
    assert scaling["long_factor"] == scaling["short_factor"] == factors.tolist()
    assert scaling["attention_factor"] == 1.0
    tensors["rope_freqs.weight"] = np.ones(8, np.float32)
    assert (
        opened(write(tmp_path / "m.gguf", "llama", llama, tensors)).config()["rope_scaling"] is None
    )
    tensors["rope_freqs.weight"] = -factors
    with pytest.raises(CheckpointError, match="not positive"):
        opened(write(tmp_path / "m.gguf", "llama", llama, tensors)).config()


def test_smollm3_leaves_every_fourth_layer_unrotated(
    tmp_path: Path, write: Writer, llama: dict[str, Any]
) -> None:
    keys = {**llama, "block_count": 5}
    tensors = {"token_embd.weight": np.zeros((5, 64), np.float32)}
    config = opened(write(tmp_path / "m.gguf", "smollm3", keys, tensors)).config()
    assert config["architectures"] == ["SmolLM3ForCausalLM"]
    assert config["no_rope_layers"] == [1, 1, 1, 0, 1]


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
def test_metadata_of_the_wrong_kind(
    tmp_path: Path, changes: dict[str, Any], message: str, write: Writer, llama: dict[str, Any]
) -> None:
    keys = {name: value for name, value in {**llama, **changes}.items() if value is not None}
    tensors = {"token_embd.weight": np.zeros((5, 64), np.float32)}
    checkpoint = opened(write(tmp_path / "m.gguf", "llama", keys, tensors))
    with pytest.raises(CheckpointError, match=message):
        checkpoint.config()


def test_per_layer_values_that_agree_are_one(
    tmp_path: Path, write: Writer, llama: dict[str, Any]
) -> None:
    keys = {**llama, "attention.head_count_kv": [2, 2]}
    tensors = {"token_embd.weight": np.zeros((5, 64), np.float32)}
    config = opened(write(tmp_path / "m.gguf", "llama", keys, tensors)).config()
    assert config["num_key_value_heads"] == 2
