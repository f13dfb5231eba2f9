"""Mixtral against transformers."""

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from tramontane.errors import ConfigError
from tramontane.loading.loader import LoadRequest, load_text
from tramontane_mistral.mixtral import MixtralConfig
from tramontane_testkit import ArchitectureContract
from tramontane_testkit.models import hf_model, save_hf

EXPERTS = {"num_local_experts": 6, "num_experts_per_tok": 2}


class TestMixtral(ArchitectureContract):
    model_class = "MixtralForCausalLM"
    base: ClassVar = EXPERTS
    cases: ClassVar = {
        "two of six": {},
        "one of six": {"num_experts_per_tok": 1},
        "all": {"num_experts_per_tok": 6},
        "with a window": {"sliding_window": 8},
        "tied, multi-head": {"tie_word_embeddings": True, "num_key_value_heads": 4},
    }
    gguf_architecture = "llama"
    gguf_cases = ("two of six", "one of six", "tied, multi-head")


def _loaded(directory: Path) -> Any:
    return load_text(LoadRequest(model_id=str(directory), dtype="f32")).model


def test_stacked_checkpoint_equals_the_one_by_expert(tmp_path: Path) -> None:
    model = hf_model("MixtralForCausalLM", **EXPERTS)
    singly = _loaded(save_hf(model, tmp_path / "singly"))
    stacked = _loaded(save_hf(model, tmp_path / "stacked", save_original_format=False))
    expected = singly.state_dict()
    assert expected.keys() == stacked.state_dict().keys()
    for name, tensor in stacked.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0)


def test_more_experts_a_token_than_there_are() -> None:
    data = {
        "vocab_size": 100,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_local_experts": 2,
        "num_experts_per_tok": 3,
    }
    with pytest.raises(ConfigError, match="num_experts_per_tok is 3"):
        MixtralConfig.from_dict(data)
