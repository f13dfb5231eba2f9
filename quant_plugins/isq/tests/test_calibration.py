"""Statistics of activations: equal to those taken from transformers, and of use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tramontane import Runner, ValidationError, Which
from tramontane.errors import SourceError
from tramontane.loading.loader import LoadRequest, load_text
from tramontane.protocols import InSituSettings
from tramontane.text.tokenizer import Tokenizer
from tramontane_isq.imatrix import read_imatrix, write_cimatrix
from tramontane_testkit.models import BOS, hf_model, save_hf, tiny_llama

WIDE = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 4}
TEXT = "The quick brown fox jumps over the lazy dog. " * 12


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("wide") / "model", **WIDE)


def pipeline_of(runner: Runner) -> Any:
    return runner._models.peek(None)


def by_transformers(model: nn.Module, pieces: list[list[int]]) -> dict[str, torch.Tensor]:
    """Mean squares of every linear's input."""
    sums: dict[str, Any] = {}

    def watch(name: str) -> Any:
        def see(_: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
            flat = arguments[0].reshape(-1, arguments[0].shape[-1]).double()
            total, rows = sums.get(name, (0, 0))
            sums[name] = total + flat.square().sum(0), rows + flat.shape[0]

        return see

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name != "lm_head":
            module.register_forward_pre_hook(watch(name))
    with torch.no_grad():
        for piece in pieces:
            model(torch.tensor([piece]))
    return {name: (total / rows).float() for name, (total, rows) in sums.items()}


def test_a_calibration_file_gives_the_statistics_of_transformers(
    wide: Path, tmp_path: Path
) -> None:
    file = tmp_path / "text.txt"
    file.write_text(TEXT, "utf-8")
    ids = Tokenizer.from_files(wide).encode(TEXT, add_special_tokens=False)
    reference = hf_model("LlamaForCausalLM", **WIDE)
    size = 256 - 2  # what the model's context leaves
    pieces = [[BOS, *ids[i : i + size]] for i in range(0, len(ids), size)]
    expected = by_transformers(reference, pieces)
    with Runner(Which.Plain(str(wide))) as runner:
        pipeline = pipeline_of(runner)
        pipeline.calibrate(file)
        found = pipeline.live_weights._calibration.importance()
        assert runner.calibration_status()["rows"] == sum(map(len, pieces))
    for name, values in expected.items():
        assert torch.allclose(found[name], values, rtol=1e-4, atol=1e-6), name


def test_calibrated_weights_are_those_of_the_same_importance_matrix(
    wide: Path, tmp_path: Path
) -> None:
    file = tmp_path / "text.txt"
    file.write_text(TEXT, "utf-8")
    with Runner(Which.Plain(str(wide))) as runner:
        pipeline_of(runner).calibrate(file)
        importance = pipeline_of(runner).live_weights._calibration.importance()
        write_cimatrix(tmp_path / "m.cimatrix", importance)
    matrix = str(tmp_path / "m.cimatrix")
    packed = []
    for which in (
        Which.Plain(str(wide), calibration_file=str(file)),
        Which.Plain(str(wide), imatrix=matrix),
        Which.Plain(str(wide)),
    ):
        with Runner(which, in_situ_quant="Q2K") as runner:
            model = pipeline_of(runner).live_weights._model
            packed.append(model.model.layers[0].mlp.up_proj.packed.blocks)
            full = sum(p.numel() * 4 for p in hf_model("LlamaForCausalLM", **WIDE).parameters())
            assert runner.stats()["weight_bytes"] < 0.3 * full
    assert torch.equal(packed[0], packed[1])
    assert not torch.equal(packed[0], packed[2])


def test_requests_calibrate_a_running_model(wide: Path) -> None:
    with Runner(Which.Plain(str(wide))) as runner:
        with pytest.raises(ValidationError, match="begin_calibration first"):
            runner.apply_calibration("Q4K")
        runner.begin_calibration()
        with pytest.raises(ValidationError, match="already"):
            runner.begin_calibration()
        with pytest.raises(ValidationError, match="no statistics have been collected"):
            runner.apply_calibration("Q4K")
        status = runner.calibration_status()
        assert (status["active"], status["rows"], status["unseen"]) == (True, 0, 15)
        runner.send_completion_request({"prompt": "hello there", "max_tokens": 4})
        assert runner.calibration_status()["rows"] >= 14
        with pytest.raises(ValidationError, match="'Q99'"):
            runner.apply_calibration("Q99")
        runner.apply_calibration("Q4K")
        assert runner.calibration_status()["active"] is False
        assert runner.send_completion_request({"prompt": "a", "max_tokens": 2}).choices


def test_experts_have_statistics_of_their_own_tokens(tmp_path: Path) -> None:
    keys = {"num_local_experts": 4, "num_experts_per_tok": 2, **WIDE}
    directory = save_hf(hf_model("MixtralForCausalLM", **keys), tmp_path / "moe")
    with Runner(Which.Plain(str(directory))) as runner:
        runner.begin_calibration()
        runner.send_completion_request({"prompt": "hello there, world", "max_tokens": 1})
        collector = pipeline_of(runner).live_weights._calibration
        stack = collector.importance()["model.layers.0.mlp.experts.up_proj"]
        assert stack.shape == (4, 256)
        per_token = collector.rows["model.layers.0.self_attn.q_proj"]
        assert collector.rows["model.layers.0.mlp.experts.up_proj"] == 2 * per_token
        runner.apply_calibration("Q4K")
        assert runner.send_completion_request({"prompt": "a", "max_tokens": 2}).choices


def test_statistics_without_a_type_and_files_that_do_not_fit(wide: Path, tmp_path: Path) -> None:
    matrix = tmp_path / "m.cimatrix"
    write_cimatrix(matrix, {"model.layers.0.self_attn.q_proj": torch.ones(64)})
    with pytest.raises(ValidationError, match="give in_situ_quant too"):
        Runner(Which.Plain(str(wide), imatrix=str(matrix)))
    with pytest.raises(ValidationError, match=r"64.* belongs to another model"):
        Runner(Which.Plain(str(wide), imatrix=str(matrix)), in_situ_quant="Q4K")
    write_cimatrix(matrix, {"transformer.h.0": torch.ones(256)})
    with pytest.raises(ValidationError, match=r"transformer\.h\.0 …: it belongs to another"):
        Runner(Which.Plain(str(wide), imatrix=str(matrix)), in_situ_quant="Q4K")
    (tmp_path / "empty.txt").write_text("  \n")
    with pytest.raises(SourceError, match="holds no text"):
        Runner(
            Which.Plain(str(wide), calibration_file=str(tmp_path / "empty.txt")),
            in_situ_quant="Q4K",
        )
    assert read_imatrix(matrix, pipeline_plugins()).values


def pipeline_plugins() -> Any:
    from tramontane.hooks import plugin_manager

    return plugin_manager()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Q2K", "Q3K"])
def test_an_importance_matrix_brings_the_demo_model_nearer_to_itself(
    kind: str, tmp_path: Path
) -> None:
    """KL divergence from the unquantized model, on text that was not calibrated with; all of it is
    the model's own."""
    from transformers import LlamaForCausalLM

    demo = pytest.importorskip("tramontane_demo_model")
    source = Path(demo.__file__).parent / "model"
    with Runner(Which.Plain(str(source)), seed=1) as runner:
        request = {"prompt": "Once upon a time", "max_tokens": 150, "n_choices": 16}
        drawn = [runner.send_completion_request(request).choices for _ in range(3)]
    stories = [f"Once upon a time{choice.text}" for choices in drawn for choice in choices]
    file = tmp_path / "text.txt"
    file.write_text("\n".join(stories[:40]), "utf-8")
    held_out = "\n".join(stories[40:])[:3500]
    ids = torch.tensor([Tokenizer.from_files(source).encode(held_out)])
    reference = LlamaForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = reference(ids).logits.log_softmax(-1)
    divergences = []
    for settings in ({}, {"calibration_file": str(file)}):
        with Runner(Which.Plain(str(source), **settings), in_situ_quant=kind) as runner:
            model = pipeline_of(runner).live_weights._model
            for name, module in model.named_modules():
                packed = getattr(module, "packed", None)
                if packed is not None:
                    reference.get_submodule(name).weight.data = packed.dequantize()
        with torch.no_grad():
            found = reference(ids).logits.log_softmax(-1)
        divergences.append(float((expected.exp() * (expected - found)).sum(-1).mean()))
    assert 0 < divergences[1] < divergences[0]


def test_loading_by_an_importance_matrix_of_llama_cpp(wide: Path, tmp_path: Path) -> None:
    import struct

    name = b"blk.0.attn_q.weight"
    values = torch.rand(256) + 0.1
    data = struct.pack("<ii", 1, len(name)) + name + struct.pack("<ii", 2, 256)
    (tmp_path / "m.dat").write_bytes(data + (2 * values).numpy().tobytes())
    settings = InSituSettings(type_name="Q4K", imatrix=tmp_path / "m.dat")
    weighted = load_text(LoadRequest(model_id=str(wide), in_situ=settings)).model
    plain = load_text(
        LoadRequest(model_id=str(wide), in_situ=InSituSettings(type_name="Q4K"))
    ).model
    q = [m.model.layers[0].self_attn.q_proj.packed.blocks for m in (weighted, plain)]
    k = [m.model.layers[0].self_attn.k_proj.packed.blocks for m in (weighted, plain)]
    assert not torch.equal(*q)
    assert torch.equal(*k)
