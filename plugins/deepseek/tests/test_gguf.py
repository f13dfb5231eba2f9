"""GGUF files of DeepSeek models as older converters wrote them, and packed latent projections."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tramontane.hooks import plugin_manager
from tramontane.loading.loader import LoadRequest, build, load_text
from tramontane.loading.opening import open_checkpoint
from tramontane.protocols import CheckpointView
from tramontane_deepseek.deepseek_v3 import DeepseekV3, DeepseekV3Config
from tramontane_testkit import Stepper, llama_cpp
from tramontane_testkit.gguf_files import gguf_of
from tramontane_testkit.models import DEEPSEEK_V3, hf_model, save_hf

quantizer = pytest.importorskip("tramontane_gguf.quantizer", reason="tramontane-gguf is missing")

KEYS = {**DEEPSEEK_V3, "kv_lora_rank": 32}
PROMPT = [7 * i % 250 for i in range(40)]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_hf(hf_model("DeepseekV3ForCausalLM", **KEYS), tmp_path_factory.mktemp("model"))


def logits(model: Any, config: Any) -> Tensor:
    """Of a long chunk, which expands the latents, and of single steps, which do not."""
    stepper = Stepper(model, config)
    stepper.add("a", PROMPT)
    return torch.cat([stepper.step({"a": 36})["a"], *(stepper.step({"a": 1})["a"] for _ in "abcd")])


def test_files_from_before_kv_b_was_halved(directory: Path, tmp_path: Path) -> None:
    file = gguf_of(directory, tmp_path / "model.gguf", "deepseek2", halves=False)
    ours = load_text(LoadRequest(model_id=str(directory), dtype="f32"))
    old = load_text(LoadRequest(model_id=str(tmp_path), files=[file.name], dtype="f32"))
    assert type(old.model) is DeepseekV3
    torch.testing.assert_close(
        logits(old.model, old.config), logits(ours.model, ours.config), rtol=1e-4, atol=1e-4
    )


class Packed(CheckpointView):
    """``kv_b_proj`` in Q8_0, or what that rounds it to."""

    def __init__(self, inner: Any, *, rounded: bool) -> None:
        super().__init__(inner)
        self.rounded = rounded

    def tensor(self, name: str) -> Any:
        found = self.inner.tensor(name)
        if not name.endswith("kv_b_proj.weight"):
            return found
        packed = quantizer.GgmlQuantizer().quantize(found, "q8_0")
        return packed.dequantize() if self.rounded else packed


def test_a_packed_projection_of_latents(directory: Path) -> None:
    loaded = load_text(LoadRequest(model_id=str(directory), dtype="f32"))
    config: DeepseekV3Config = loaded.config
    results = []
    for rounded in (True, False):
        checkpoint = open_checkpoint([directory / "model.safetensors"], plugin_manager())
        view = Packed(checkpoint, rounded=rounded)
        cpu = torch.device("cpu")
        model = build(DeepseekV3, config, view, dtype=torch.float32, device=cpu)
        results.append(logits(model, config))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], logits(loaded.model, config))


@pytest.mark.slow
@pytest.mark.peer
def test_llama_cpp_knows_models_without_query_latents_by_27_layers(tmp_path: Path) -> None:
    keys = {k: v for k, v in KEYS.items() if "group" not in k}
    keys |= {"q_lora_rank": None, "num_hidden_layers": 27, "norm_topk_prob": False}
    directory = save_hf(hf_model("DeepseekV2ForCausalLM", **keys), tmp_path / "model")
    file = gguf_of(directory, tmp_path / "model.gguf", "deepseek2")
    expected = llama_cpp.greedy(file, PROMPT, 64)
    loaded = load_text(LoadRequest(model_id=str(tmp_path), files=[file.name], dtype="f32"))
    stepper = Stepper(loaded.model, loaded.config)
    stepper.add("a", PROMPT)
    assert stepper.greedy("a", 64) == expected
