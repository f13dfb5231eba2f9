"""What files of DeepSeek models say of themselves, and their kv_b_proj in halves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tramontane.errors import CheckpointError
from tramontane.protocols import CheckpointView
from tramontane_gguf.latent import JoinedHeads, KeysAndValues, latent_settings
from tramontane_gguf.metadata import Metadata
from tramontane_gguf.quantizer import GgmlQuantizer

HEADS, NOPE, VALUE, RANK = 3, 32, 4, 64
OLD: dict[str, Any] = {
    "deepseek2.attention.head_count": 16,
    "deepseek2.attention.head_count_kv": 16,
    "deepseek2.attention.key_length": 192,
    "deepseek2.attention.value_length": 128,
    "deepseek2.rope.dimension_count": 64,
}
NEW: dict[str, Any] = {
    **OLD,
    "deepseek2.attention.head_count_kv": 1,
    "deepseek2.attention.key_length": 576,
    "deepseek2.attention.value_length": 512,
    "deepseek2.attention.key_length_mla": 192,
    "deepseek2.attention.value_length_mla": 128,
    "deepseek2.attention.q_lora_rank": 1536,
    "deepseek2.expert_gating_func": 2,
    "deepseek2.expert_group_count": 8,
    "deepseek2.expert_group_used_count": 4,
    "deepseek2.expert_weights_norm": True,
}


def settings(values: dict[str, Any]) -> dict[str, Any]:
    return latent_settings(Metadata(Path("model.gguf"), values), "deepseek2.", [])


@pytest.mark.parametrize("values", [OLD, NEW])
def test_lengths_of_heads_in_old_and_new_files(values: dict[str, Any]) -> None:
    found = settings(values)
    assert (found["qk_nope_head_dim"], found["v_head_dim"]) == (128, 128)
    assert found["num_key_value_heads"] == 16


def test_generations_are_told_apart_by_how_experts_are_gated() -> None:
    first, second = settings(OLD), settings(NEW)
    assert "architectures" not in first
    assert first["topk_method"] == "greedy"
    assert first["q_lora_rank"] is None
    assert second["architectures"] == ["DeepseekV3ForCausalLM"]
    assert (second["n_group"], second["topk_group"], second["q_lora_rank"]) == (8, 4, 1536)
    groups = settings({**NEW, "deepseek2.expert_gating_func": 1})
    assert groups["topk_method"] == "group_limited_greedy"
    with pytest.raises(CheckpointError, match=r"expert_gating_func must be 1 \(softmax\) or 2"):
        settings({**NEW, "deepseek2.expert_gating_func": 3})
    with pytest.raises(CheckpointError, match="key_length_mla must be above zero"):
        settings({**NEW, "deepseek2.attention.key_length_mla": np.array([-1])})


def halves() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """kv_b_proj, and its halves as files keep them."""
    whole = torch.randn(HEADS * (NOPE + VALUE), RANK, generator=torch.Generator().manual_seed(0))
    by_head = whole.view(HEADS, NOPE + VALUE, RANK)
    return whole, by_head[:, :NOPE].transpose(1, 2).contiguous(), by_head[:, NOPE:].contiguous()


class Memory:
    def __init__(self, tensors: dict[str, Any]) -> None:
        self.tensors = tensors

    def names(self) -> list[str]:
        return list(self.tensors)

    def tensor(self, name: str) -> Any:
        return self.tensors[name]


def test_plain_halves_are_joined() -> None:
    whole, k, v = halves()
    inner: Any = Memory({"other": whole, "l.k_b_proj.weight": k, "l.v_b_proj.weight": v})
    view = JoinedHeads(inner)
    assert isinstance(view, CheckpointView)
    assert view.names() == ["other", "l.kv_b_proj.weight"]
    assert torch.equal(view.tensor("l.kv_b_proj.weight"), whole)
    assert view.tensor("other") is whole


def test_packed_halves_stay_packed_until_they_are_used() -> None:
    _, k, v = halves()
    pack = GgmlQuantizer().quantize
    inner: Any = Memory({"l.k_b_proj.weight": pack(k, "q8_0"), "l.v_b_proj.weight": v})
    mixed = JoinedHeads(inner).tensor("l.kv_b_proj.weight")
    packed = KeysAndValues(pack(k, "q8_0"), pack(v, "q8_0"))
    assert packed.shape == (HEADS * (NOPE + VALUE), RANK)
    assert packed.nbytes == (k.numel() + v.numel()) * 34 // 32
    dense = packed.dequantize()
    by_head = dense.view(HEADS, NOPE + VALUE, RANK)
    assert torch.equal(by_head[:, :NOPE].transpose(1, 2), packed.keys.dequantize())
    assert torch.equal(by_head[:, NOPE:], packed.values.dequantize())
    assert torch.equal(mixed.dequantize().view(by_head.shape)[:, NOPE:], v)
    size = NOPE + VALUE
    assert torch.equal(packed.rows(size, 2 * size).dequantize(), dense[size : 2 * size])
    assert torch.equal(packed.gather(torch.tensor([5, 70])), dense[[5, 70]])
    parts = [packed.rows(0, size), packed.rows(size, 3 * size)]
    assert torch.equal(KeysAndValues.concat(parts).dequantize(), dense)
    with pytest.raises(ValueError, match="not those of heads of 36"):
        packed.rows(1, size)


def test_halves_that_do_not_fit_are_refused() -> None:
    _, k, v = halves()
    inner: Any = Memory({"l.k_b_proj.weight": k, "l.v_b_proj.weight": v[:2]})
    with pytest.raises(CheckpointError, match="halves that do not fit"):
        JoinedHeads(inner).tensor("l.kv_b_proj.weight")
