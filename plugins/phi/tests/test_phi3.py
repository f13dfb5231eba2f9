"""Phi 3 against transformers."""

from typing import Any, ClassVar

import pytest
import torch

from tramontane import Runner, Which
from tramontane.errors import CheckpointError, ConfigError
from tramontane.loading.loader import LoadRequest, load_text
from tramontane_phi.phi3 import Phi3Config
from tramontane_testkit import ArchitectureContract
from tramontane_testkit.models import SPECIALS, hf_model, save_hf


def longrope(original: int, size: int = 4, share: float = 1.0) -> dict[str, Any]:
    """LongRoPE as Phi 3 files state it: the factor follows from the two context lengths."""
    return {
        "original_max_position_embeddings": original,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 1000.0,
            "partial_rotary_factor": share,
            "short_factor": [1.0 + 0.2 * i for i in range(size)],
            "long_factor": [1.0 + 1.7 * i for i in range(size)],
        },
    }


class TestPhi3(ArchitectureContract):
    model_class = "Phi3ForCausalLM"
    gguf_architecture = "phi3"
    cases: ClassVar = {
        "grouped-query": {},
        "multi-head, tied": {"num_key_value_heads": 4, "tie_word_embeddings": True},
        "window": {"sliding_window": 8},
        "partial rotation": {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1000.0,
                "partial_rotary_factor": 0.75,
            }
        },
        "longrope, long prompt": longrope(32),
        "longrope, growing past the switch": longrope(64),
        "longrope, partial rotation": longrope(32, size=3, share=0.75),
    }
    gguf_cases = (
        "grouped-query",
        "multi-head, tied",
        "window",
        "partial rotation",
        "longrope, long prompt",
        "longrope, partial rotation",
    )
    llama_cpp_differs: ClassVar = {"window": "llama.cpp leaves out the window of Phi 3"}


MINIMAL: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def test_sizes_of_the_fused_tensor() -> None:
    config = Phi3Config.from_dict({**MINIMAL, "num_key_value_heads": 2})
    assert (config.q_size, config.kv_size) == (32, 16)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "rope_type is 'linear'"),
        ({"sliding_window": 0}, "sliding_window is 0"),
    ],
)
def test_what_it_does_not_cover_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Phi3Config.from_dict({**MINIMAL, **keys})


def test_fused_tensor_of_another_shape_is_refused(tmp_path: Any) -> None:
    directory = save_hf(hf_model("Phi3ForCausalLM"), tmp_path / "model")
    file = directory / "config.json"
    text = file.read_text("utf-8").replace('"num_key_value_heads": 2', '"num_key_value_heads": 1')
    file.write_text(text, "utf-8")
    with pytest.raises(CheckpointError, match=r"qkv_proj.weight has length 64 .* 32 \+ 8 \+ 8"):
        load_text(LoadRequest(model_id=str(directory), dtype="f32"))


@pytest.fixture(scope="module")
def switching(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, str]:
    """A model that changes its factors after 64 tokens: the reference, and its directory."""
    reference = hf_model("Phi3ForCausalLM", **longrope(64))
    return reference, str(save_hf(reference, tmp_path_factory.mktemp("switching")))


@pytest.mark.parametrize("settings", [{}, {"no_kv_cache": True}, {"prefix_cache_n": 0}])
@pytest.mark.parametrize("length", [40, 63, 64, 65])
def test_growing_past_the_switch_equals_generate(
    switching: tuple[Any, str], length: int, settings: dict[str, Any]
) -> None:
    """``generate`` drops its cache there; each token is that of the whole text so far."""
    reference, directory = switching
    prompt = "".join(chr(97 + i * i % 26) for i in range(length))
    ids = torch.tensor([list(prompt.encode())])
    with torch.inference_mode():
        whole = reference.generate(ids, max_new_tokens=40, do_sample=False, eos_token_id=None)
    expected = whole[0, length:].tolist()
    with Runner(which=Which.Plain(directory, dtype="f32"), **settings) as runner:
        request = {"prompt": prompt, "max_tokens": 40, "temperature": 0.0, "ignore_eos": True}
        first = tokens_of(runner, request)
        again = tokens_of(runner, request)  # what the first one left in the cache fits
        restarts = runner.stats()["restarts"]
    assert first == again == expected
    assert restarts == (2 if length <= 64 and "no_kv_cache" not in settings else 0)


def tokens_of(runner: Runner, request: dict[str, Any]) -> list[int]:
    """Token ids of the answer, which is no text but the bytes of each."""
    answer = runner.send_completion_request({**request, "logprobs": True})
    ids = {bytes([token_id]): token_id for token_id in range(256)}
    ids |= {special.encode(): 257 + i for i, special in enumerate(SPECIALS)} | {b"\xff\xff": 256}
    return [ids[bytes(entry.bytes)] for entry in answer.choices[0].logprobs.content]
