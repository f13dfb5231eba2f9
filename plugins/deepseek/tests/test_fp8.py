"""An FP8 checkpoint as DeepSeek V3 is published, against transformers."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.integrations.finegrained_fp8 import Fp8Quantize
from transformers.quantizers.quantizer_finegrained_fp8 import FineGrainedFP8HfQuantizer

from tramontane.loading.loader import LoadRequest, load_text
from tramontane.nn import PackedExpertLinear, PackedLinear
from tramontane_testkit import Stepper
from tramontane_testkit.models import DEEPSEEK_V3, hf_model, save_hf

pytest.importorskip("tramontane_fp8", reason="tramontane-fp8 is not installed")

KEYS = {
    **DEEPSEEK_V3,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
    "moe_intermediate_size": 32,
}
TILE = 16
PROMPT = [7 * i % 250 for i in range(40)]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    directory = save_hf(hf_model("DeepseekV3ForCausalLM", **KEYS), tmp_path)
    settings = SimpleNamespace(weight_block_size=(TILE, TILE), scale_fmt="float")
    quantize = Fp8Quantize(SimpleNamespace(quantization_config=settings))
    stored: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(directory / "model.safetensors").items():
        packed = "_proj" in name and tensor.dim() == 2
        stored |= quantize._quantize_one(name, tensor) if packed else {name: tensor}
    save_file(stored, directory / "model.safetensors", {"format": "pt"})
    config = json.loads((directory / "config.json").read_text("utf-8"))
    config["quantization_config"] = {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [TILE, TILE],
    }
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return directory


def test_logits_are_those_of_the_dequantized_reference(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dequantize(self: Any, *args: Any, **kwargs: Any) -> None:
        """Without the check for an accelerator, which dequantizing needs none of."""
        self.quantization_config.dequantize = True

    monkeypatch.setattr(FineGrainedFP8HfQuantizer, "validate_environment", dequantize)
    reference = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.inference_mode():
        expected = reference(torch.tensor([PROMPT])).logits[0]

    loaded = load_text(LoadRequest(model_id=str(directory), dtype="f32"))
    layer = loaded.model.model.layers[1]
    assert isinstance(layer.self_attn.o_proj, PackedLinear)
    assert isinstance(layer.mlp.experts.down_proj, PackedExpertLinear)
    assert layer.mlp.experts.down_proj.packed.format == "fp8.block"
    stepper = Stepper(loaded.model, loaded.config)
    stepper.add("a", PROMPT)
    actual = torch.cat([stepper.step({"a": 36})["a"], stepper.finish("a")])
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
