"""gpt-oss as it is published, with experts in MXFP4."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GptOssForCausalLM, Mxfp4Config

from tramontane.errors import MissingPluginError
from tramontane.hooks import PluginManager
from tramontane.loading.loader import LoadRequest, load_text
from tramontane.loading.stored import open_stored
from tramontane.nn import PackedExpertLinear
from tramontane_gpt_oss import plugin
from tramontane_testkit.gguf_files import gguf_of
from tramontane_testkit.models import VOCAB_SIZE, hf_model, save_hf
from tramontane_testkit.stepping import Stepper

mxfp4 = pytest.importorskip("tramontane_mxfp4.quantizer", reason="tramontane-mxfp4 is missing")
EXPERTS, INNER, HIDDEN = 4, 32, 64


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in float32."""
    model = hf_model(
        "GptOssForCausalLM",
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        head_dim=8,
        num_local_experts=EXPERTS,
        num_experts_per_tok=2,
        sliding_window=8,
        num_hidden_layers=2,
    )
    return save_hf(model, tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def directory(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, packed and laid out like the published ones."""
    path = tmp_path_factory.mktemp("mxfp4")
    shutil.copytree(plain, path, dirs_exist_ok=True)
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(path / "model.safetensors").items():
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            packed = mxfp4.Mxfp4Quantizer().quantize(tensor.mT)
            tensors[f"{name}_blocks"], tensors[f"{name}_scales"] = packed.codes, packed.scales
        else:
            tensors[name] = tensor
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((path / "config.json").read_text("utf-8"))
    config["quantization_config"] = {
        "quant_method": "mxfp4",
        "modules_to_not_convert": [
            "model.layers.*.self_attn",
            "model.layers.*.mlp.router",
            "model.embed_tokens",
            "lm_head",
        ],
    }
    (path / "config.json").write_text(json.dumps(config), "utf-8")
    return path


def logits(loaded: Any, prompt: list[int]) -> torch.Tensor:
    stepper = Stepper(loaded.model, loaded.config)
    stepper.add("a", prompt)
    return stepper.finish("a")


def test_packed_experts_equal_those_transformers_unpacks(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Native kernels round activations to int8, which this is not about.
    monkeypatch.setenv("TRAMONTANE_KERNELS", "reference")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = GptOssForCausalLM.from_pretrained(
            directory,
            quantization_config=Mxfp4Config(dequantize=True),
            dtype=torch.float32,
            attn_implementation="eager",
        )
    loaded = load_text(LoadRequest(model_id=str(directory), dtype="f32"))
    prompt = torch.randint(0, VOCAB_SIZE, (45,), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = reference(prompt[None]).logits[0]
    torch.testing.assert_close(logits(loaded, prompt.tolist()), expected, rtol=1e-4, atol=1e-4)

    experts = loaded.model.model.layers[0].mlp.experts
    for linear in (experts.gate_proj, experts.up_proj, experts.down_proj):
        assert isinstance(linear, PackedExpertLinear)
    # Gate and up are rows of one tensor of the file, which neither of them has copied.
    gate, up = experts.gate_proj.packed, experts.up_proj.packed
    assert up.codes.data_ptr() - gate.codes.data_ptr() == HIDDEN // 2
    stored = load_file(directory / "model.safetensors")
    assert loaded.weight_bytes == sum(t.nbytes for t in stored.values())


def test_gguf_with_the_same_experts_is_the_same_model(
    plain: Path, directory: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tramontane_gguf", reason="tramontane-gguf is not installed")
    gguf_of(plain, tmp_path / "m.gguf", "gpt-oss", packed={"_exps.weight": "MXFP4"})
    found = load_text(LoadRequest(model_id=str(tmp_path), files=["m.gguf"], dtype="f32"))
    expected = load_text(LoadRequest(model_id=str(directory), dtype="f32"))
    for mine, theirs in zip(found.model.modules(), expected.model.modules(), strict=True):
        if isinstance(mine, PackedExpertLinear):
            assert mine.packed.format == "gguf.mxfp4"
            assert torch.equal(mine.packed.dequantize(), theirs.packed.dequantize())
    prompt = list(range(40))
    torch.testing.assert_close(logits(found, prompt), logits(expected, prompt))


@pytest.mark.parametrize("kind", ["F16", "Q4_K_M", "MXFP4_MOE"])
def test_gguf_is_written_with_the_same_experts(
    plain: Path, directory: Path, tmp_path: Path, kind: str
) -> None:
    checkpoint = pytest.importorskip("tramontane_gguf.checkpoint", reason="needs tramontane-gguf")
    theirs = gguf_of(plain, tmp_path / "theirs.gguf", "gpt-oss", packed={"_exps.weight": "MXFP4"})
    ours, again = tmp_path / "ours.gguf", tmp_path / "again.gguf"
    with open_stored(LoadRequest(model_id=str(directory))) as model:
        checkpoint.GgufFormat().write(model, ours, kind)
    with open_stored(LoadRequest(model_id=str(tmp_path), files=["ours.gguf"])) as model:
        checkpoint.GgufFormat().write(model, again, kind)
    blocks = [
        {
            info.name: read().blocks
            for info, read in checkpoint.GgufFormat().open([file]).raw_tensors()
            if info.type.name == "mxfp4"
        }
        for file in (theirs, ours, again)
    ]
    assert len(blocks[0]) == 6
    for found in blocks[1:]:
        assert found.keys() == blocks[0].keys()
        assert all(torch.equal(found[name], blocks[0][name]) for name in found)


def test_native_kernels_answer_alike(directory: Path) -> None:
    library = pytest.importorskip("tramontane_kernels_cpu.library")
    if library.why_not():
        pytest.skip(library.why_not())
    loaded = load_text(LoadRequest(model_id=str(directory), dtype="f32"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRAMONTANE_KERNELS", "reference")
        exact = load_text(LoadRequest(model_id=str(directory), dtype="f32"))
    prompt = list(range(40))
    found, expected = logits(loaded, prompt), logits(exact, prompt)
    assert not torch.equal(found, expected)
    assert float((found - expected).norm() / expected.norm()) < 0.05


def test_without_the_quantizer_the_error_says_what_to_install(directory: Path) -> None:
    only = PluginManager([plugin], discover=False)
    with pytest.raises(MissingPluginError, match=r"pip install 'tramontane\[mxfp4\]'"):
        load_text(LoadRequest(model_id=str(directory), plugins=only))
