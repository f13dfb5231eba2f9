"""Granite 4 files: layers without attention, tensors in llama.cpp's shapes."""

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

EMBEDDING = np.zeros((10, 64), np.float32)
SSM = {
    "ssm.conv_kernel": 4, "ssm.state_size": 8, "ssm.group_count": 2, "ssm.inner_size": 128,
    "ssm.time_step_rank": 16, "rope.scaling.finetuned": False,
}  # fmt: skip


@pytest.fixture
def opened(tmp_path: Path, write: Writer, llama: dict[str, Any]) -> Callable[..., Checkpoint]:
    def make(arch: str = "granitehybrid", tensors: Any = (), **keys: Any) -> Checkpoint:
        named = {"token_embd.weight": EMBEDDING, **dict(tensors)}
        file = write(tmp_path / "g.gguf", arch, {**llama, **keys}, named)
        return GgufFormat().open([file])

    return make


def hybrid(**keys: Any) -> dict[str, Any]:
    keys = {name.replace("__", "."): value for name, value in keys.items()}
    return {**SSM, "attention.head_count_kv": [0, 2], **keys}


def test_layers_without_heads_are_mamba(opened: Callable[..., Checkpoint]) -> None:
    config = opened(**hybrid()).config()
    assert config is not None
    wanted = {
        "architectures": ["GraniteMoeHybridForCausalLM"], "layer_types": ["mamba", "attention"],
        "num_key_value_heads": 2, "position_embedding_type": "nope", "mamba_d_head": 8,
        "mamba_n_heads": 16, "mamba_expand": 2, "mamba_n_groups": 2, "mamba_d_conv": 4,
        "mamba_d_state": 8, "mamba_conv_bias": False, "num_local_experts": 0,
        "shared_intermediate_size": 96,
    }  # fmt: skip
    assert {key: config[key] for key in wanted} == wanted


def test_granite_attends_everywhere_and_rotates(opened: Callable[..., Checkpoint]) -> None:
    config = opened("granite").config()
    assert config is not None
    assert config["layer_types"] == ["attention"] * 2
    assert config["position_embedding_type"] == "rope"


def test_tensors_come_back_in_hugging_faces_form(opened: Callable[..., Checkpoint]) -> None:
    a_log = torch.linspace(0, 2, 16)
    generator = np.random.default_rng(0)
    conv, norm = generator.random((160, 4), np.float32), generator.random((2, 64), np.float32)
    d, dt = generator.random((16, 1), np.float32), generator.random(16, np.float32)
    checkpoint = opened(
        tensors={
            "blk.0.ssm_a": -a_log.exp()[:, None].numpy(),
            "blk.0.ssm_d": d,
            "blk.0.ssm_dt.bias": dt,
            "blk.0.ssm_conv1d.weight": conv,
            "blk.0.ssm_norm.weight": norm,
        },
        **hybrid(),
    )
    wanted = {
        "A_log": a_log,
        "D": torch.from_numpy(d[:, 0]),
        "dt_bias": torch.from_numpy(dt),
        "conv1d.weight": torch.from_numpy(conv[:, None]),
        "norm.weight": torch.from_numpy(norm.reshape(-1)),
    }
    for name, expected in wanted.items():
        found = checkpoint.tensor(f"model.layers.0.mamba.{name}")
        assert isinstance(found, torch.Tensor)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_damage_is_named(opened: Callable[..., Checkpoint]) -> None:
    for heads in ([0, 2, 2], [0, 0], [2, 4], [0.5, 1.0]):
        with pytest.raises(CheckpointError, match="head_count_kv"):
            opened(**hybrid(attention__head_count_kv=heads)).config()
    with pytest.raises(CheckpointError, match=r"ssm\.inner_size"):
        opened(**hybrid(ssm__inner_size=0)).config()
    rates = {"blk.0.ssm_a": np.array([[-1.0], [0.0]], np.float32)}
    with pytest.raises(CheckpointError, match="ssm_a holds rates of decay that are not negative"):
        opened(tensors=rates, **hybrid()).tensor("model.layers.0.mamba.A_log")
