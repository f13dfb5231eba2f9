"""Gemma against transformers."""

from typing import Any, ClassVar

import pytest
import torch
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm as ReferenceNorm

from tramontane.errors import ConfigError
from tramontane_gemma.gemma import Gemma, GemmaConfig, GemmaRMSNorm
from tramontane_testkit import ArchitectureContract


class TestGemma(ArchitectureContract):
    model_class = "GemmaForCausalLM"
    gguf_architecture = "gemma"
    base: ClassVar = {"head_dim": 12}
    cases: ClassVar = {
        "tied": {},
        "multi-query, untied": {"num_key_value_heads": 1, "tie_word_embeddings": False},
        "multi-head, biases": {"num_key_value_heads": 4, "attention_bias": True},
        "linear scaling": {
            "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
        },
    }
    gguf_cases = ("tied", "linear scaling")


MINIMAL: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, "gelu_pytorch_tanh"),
        ({"hidden_act": "gelu"}, "gelu_pytorch_tanh"),
        ({"hidden_act": "gelu", "hidden_activation": None}, "gelu_pytorch_tanh"),
        ({"hidden_act": "gelu", "hidden_activation": "relu"}, "relu"),
    ],
)
def test_the_gelu_of_the_first_files_is_the_approximation(
    keys: dict[str, Any], expected: str
) -> None:
    config = GemmaConfig.from_dict({**MINIMAL, **keys})
    assert config.hidden_act == expected
    assert config.head_dim == 256


def test_attention_both_ways_is_refused() -> None:
    with pytest.raises(ConfigError, match="use_bidirectional_attention is True"):
        GemmaConfig.from_dict({**MINIMAL, "use_bidirectional_attention": True})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bound", [False, True])
def test_norm_equals_transformers(dtype: torch.dtype, bound: bool) -> None:
    torch.manual_seed(0)
    reference = ReferenceNorm(24, eps=1e-5).to(dtype)
    reference.weight.data.normal_()
    norm = GemmaRMSNorm(24, 1e-5).to(dtype)
    norm.load_state_dict(reference.state_dict())
    if bound:
        norm.bind_kernels(torch.device("cpu"), dtype)
    x = (torch.randn(5, 24) * 30).to(dtype)
    torch.testing.assert_close(norm(x), reference(x))


def test_embeddings_of_another_modality_are_not_scaled() -> None:
    config = GemmaConfig.from_dict({**MINIMAL, "head_dim": 8})
    decoder: Any = Gemma(config).model

    class Batch:
        token_ids = torch.tensor([3, 4])
        embeddings: Any = None

    scaled = decoder.embed(Batch())
    torch.testing.assert_close(scaled, decoder.embed_tokens(Batch.token_ids) * 32**0.5)
    Batch.embeddings = torch.ones(2, 32)
    assert torch.equal(decoder.embed(Batch()), Batch.embeddings)
