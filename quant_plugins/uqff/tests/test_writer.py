"""What is written is read back, and nothing half-written stays."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from tramontane import Runner, Which
from tramontane.errors import MissingPluginError, UnsupportedError, ValidationError
from tramontane.hooks import plugin_manager
from tramontane.loading.loader import BoundModel, LoadRequest, load_text
from tramontane.protocols import InSituSettings
from tramontane_testkit.embedding_models import GEMMA, MEAN, NORMALIZE, dense, tiny_embedder
from tramontane_testkit.models import hf_model, save_hf
from tramontane_uqff import writer
from tramontane_uqff.writer import write_bound

from .conftest import WIDE  # noqa: TID252

TYPES = ["Q4K", "Q8_0", "AFQ4", "AFQ3", "HQQ8", "HQQ4", "FP8", "MXFP4", "F8Q8"]


def bound_of(directory: Path, type_name: str) -> BoundModel:
    """The model as it is when it is saved; its files stay open in the closure of this call."""
    found: list[BoundModel] = []
    settings = InSituSettings(type_name=type_name)
    load_text(LoadRequest(model_id=str(directory), in_situ=settings, save=found.append))
    return found[0]


@pytest.mark.parametrize("kind", TYPES)
def test_what_was_written_says_the_same(
    kind: str, wide: Path, narrow: Path, tmp_path: Path, continued: Callable[..., str]
) -> None:
    out = tmp_path / "out"
    model = wide if kind == "Q4K" else narrow
    said = continued(model, kind, write_uqff=str(out / f"{kind}.uqff"))
    assert continued(out, from_uqff=f"{kind}-0.uqff") == said
    assert continued(out, from_uqff=kind.lower()) == said  # by its report
    report = json.loads((out / "uqff_report.json").read_text())
    (output,) = report["outputs"]
    assert output["shards"] == [f"{kind}-0.uqff"]
    assert sum(output["actual_counts"].values()) == output["layers"] == 15
    with safe_open(out / f"{kind}-0.uqff", "pt") as file:
        assert file.metadata()["uqff.version"] == "1.2.0"
        assert int(file.get_tensor("uqff.version.minor")) == 2
    with safe_open(out / "residual.safetensors", "pt") as file:
        assert "model.norm.weight" in file.keys()  # noqa: SIM118
        assert not [n for n in file.keys() if "proj" in n or "lm_head" in n]  # noqa: SIM118
    assert "quantization_config" not in (out / "config.json").read_text()


@pytest.mark.parametrize(
    ("name", "kind", "settings"),
    [
        ("LlamaForCausalLM", "Q8_0", {"tie_word_embeddings": True}),
        ("Qwen2ForCausalLM", "Q4K", {}),
        ("Phi3ForCausalLM", "AFQ4", {"pad_token_id": 0}),
        ("MixtralForCausalLM", "Q4K", {"num_local_experts": 4, "num_experts_per_tok": 2}),
        ("PhiForCausalLM", "Q8_0", {}),
    ],
)
def test_names_are_those_of_checkpoints(
    name: str, kind: str, settings: dict[str, object], tmp_path: Path, continued: Callable[..., str]
) -> None:
    directory = save_hf(hf_model(name, **WIDE, **settings), tmp_path / "model")
    out = tmp_path / "out" / "x.uqff"
    said = continued(directory, kind, write_uqff=str(out))
    assert continued(out.parent, from_uqff="x-0.uqff") == said
    with safe_open(out.with_name("x-0.uqff"), "pt") as file:
        keys = {n.removesuffix(".weight.format") for n in file.keys() if n.endswith(".format")}  # noqa: SIM118
    layer = "model.layers.0."
    wanted = {
        "LlamaForCausalLM": "model.embed_tokens",
        "Qwen2ForCausalLM": f"{layer}self_attn.q_proj",
        "Phi3ForCausalLM": f"{layer}self_attn.qkv_proj",
        "MixtralForCausalLM": f"{layer}block_sparse_moe.experts.gate_proj",
        "PhiForCausalLM": f"{layer}self_attn.dense",
    }
    assert wanted[name] in keys or wanted[name].replace("block_sparse_moe", "mlp") in keys
    assert ("lm_head" in keys) != (name == "LlamaForCausalLM")


def test_large_models_are_cut_into_shards(
    wide: Path, tmp_path: Path, continued: Callable[..., str]
) -> None:
    out = tmp_path / "out"
    bound = bound_of(wide, "Q8_0")
    # The checkpoint is closed after loading; the residual is read again.
    bound.checkpoint.__init__([wide / "model.safetensors"])  # type: ignore[misc]
    shards = write_bound(bound, out / "q.uqff", "Q8_0", plugin_manager(), max_shard_bytes=200_000)
    assert len(shards) > 3
    assert all(s.stat().st_size < 300_000 for s in shards)
    said = continued(wide, "Q8_0")
    assert continued(out, from_uqff="q-1.uqff") == said  # any shard brings the others
    assert continued(out, from_uqff=";".join(s.name for s in shards)) == said
    # Written anew in fewer shards, the old ones must not be taken for new ones.
    write_bound(bound, out / "q.uqff", "Q8_0", plugin_manager())
    assert [p.name for p in out.glob("*.uqff")] == ["q-0.uqff"]
    assert continued(out, from_uqff="q-0.uqff") == said


@pytest.mark.parametrize("moment", ["save_file", "_put_in_place"])
def test_an_interrupted_run_leaves_what_was_there(
    moment: str,
    wide: Path,
    tmp_path: Path,
    continued: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    new, old = tmp_path / "new", tmp_path / "old"
    said = continued(wide, "Q8_0", write_uqff=str(old / "q.uqff"))
    before = {p.name: p.read_bytes() for p in old.iterdir()}
    calls = []

    def interrupted(*args: object, **kwargs: object) -> None:
        calls.append(args)
        raise KeyboardInterrupt

    if moment == "save_file":
        monkeypatch.setattr(writer, "save_file", interrupted)
    else:
        rename = Path.rename

        def third(self: Path, target: Path) -> Path:
            calls.append(target)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return rename(self, target)

        monkeypatch.setattr(Path, "rename", third)
    for out in (new, old):
        calls.clear()
        with pytest.raises(KeyboardInterrupt):
            continued(wide, "Q4_0", write_uqff=str(out / "q.uqff"))
        assert calls
    monkeypatch.undo()
    assert not new.exists()
    assert {p.name: p.read_bytes() for p in old.iterdir()} == before
    assert continued(old, from_uqff="q-0.uqff") == said


def test_several_types_of_one_model_share_a_directory(
    wide: Path, tmp_path: Path, continued: Callable[..., str]
) -> None:
    out = tmp_path / "out"
    said = [continued(wide, t, write_uqff=str(out / f"{t}.uqff")) for t in ("Q4K", "Q8_0")]
    assert [continued(out, from_uqff=n) for n in ("4", "8")] == said
    other = save_hf(hf_model("LlamaForCausalLM", seed=7, **WIDE), tmp_path / "other")
    with pytest.raises(ValidationError, match="directory of its own"):
        continued(other, "Q4_0", write_uqff=str(out / "q4_0.uqff"))
    assert [continued(out, from_uqff=n) for n in ("4", "8")] == said


@pytest.mark.parametrize("by_command", [False, True])
def test_an_embedding_model_keeps_its_modules(by_command: bool, tmp_path: Path) -> None:
    from tramontane_cli.main import app

    layer = dense(64, 96, bias=False, activation_function=torch.nn.Identity())
    keys = {**GEMMA, "hidden_size": 64, "intermediate_size": 128}
    directory = tiny_embedder(tmp_path, (MEAN, layer, NORMALIZE), **keys)
    out = tmp_path / "out" / "q8_0.uqff"
    with Runner(Which.Embedding(str(directory)), in_situ_quant="Q8_0") as runner:
        expected = runner.send_embedding_request({"input": ["a text"]})
    if by_command:
        out.parent.mkdir()
        arguments = ["quantize", "-m", str(directory), "-o", str(out), "--type", "Q8_0"]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
    else:
        which = Which.Embedding(str(directory), write_uqff=str(out))
        Runner(which, in_situ_quant="Q8_0").close()
    assert (out.parent / "2_Dense" / "model.safetensors").is_file()
    with Runner(Which.Embedding(str(out.parent), from_uqff="8")) as runner:
        assert runner.send_embedding_request({"input": ["a text"]}) == expected
    with safe_open(out.with_name("q8_0-0.uqff"), "pt") as file:
        assert "layers.0.self_attn.q_proj.weight" in file.keys()  # noqa: SIM118
    # Another model whose language model is the same is not to be mixed with this one.
    changed = load_file(directory / "2_Dense" / "model.safetensors")
    save_file({k: v + 1 for k, v in changed.items()}, directory / "2_Dense" / "model.safetensors")
    which = Which.Embedding(str(directory), write_uqff=str(out.with_name("q4_0.uqff")))
    with pytest.raises(ValidationError, match="directory of its own"):
        Runner(which, in_situ_quant="Q4_0")


def test_a_topology_alone_says_what_is_written(
    wide: Path, tmp_path: Path, continued: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "layers.yml"
    path.write_text("0: {isq: Q8_0}\n1: {isq: AFQ4}\n")
    out = tmp_path / "out"
    said = continued(wide, topology=str(path), write_uqff=str(out / "mixed.uqff"))
    assert continued(out, from_uqff="mixed") == said
    output = json.loads((out / "uqff_report.json").read_text())["outputs"][0]
    assert output["actual_counts"] == {"afq4": 7, "q8_0": 7, "unquant": 1}
    # Of a topology only devices count for what is quantized already.
    path.write_text("0-2: {isq: Q2K, device: cpu}\n")
    assert continued(out, from_uqff="mixed", topology=str(path)) == said
    assert "the types of a topology are not used" in caplog.text


def test_the_command_writes_and_asks_before_it_replaces(
    wide: Path, tmp_path: Path, continued: Callable[..., str]
) -> None:
    from tramontane_cli.main import app

    out = tmp_path / "q4k.uqff"
    arguments = ["quantize", "-m", str(wide), "-o", str(out), "--type", "Q4K"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert continued(tmp_path, from_uqff="q4k") == continued(wide, "Q4K")
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code != 0


def test_what_cannot_be_written_is_refused(
    wide: Path, tmp_path: Path, continued: Callable[..., str]
) -> None:
    with pytest.raises(ValidationError, match=r"\.uqff"):
        continued(wide, "Q8_0", write_uqff=str(tmp_path / "x.bin"))
    with pytest.raises(ValidationError, match="in_situ_quant"):
        continued(wide, write_uqff=str(tmp_path / "x.uqff"))
    with pytest.raises(ValidationError, match="from_uqff"):
        continued(wide, from_uqff="q-0.uqff", write_uqff=str(tmp_path / "x.uqff"))
    with pytest.raises(ValidationError, match="imatrix has nothing to do"):
        continued(wide, from_uqff="q-0.uqff", imatrix="m.imatrix")
    which = Which.Lora("adapter", model_id=str(wide), write_uqff=str(tmp_path / "x.uqff"))
    with pytest.raises((UnsupportedError, MissingPluginError), match=r"UQFF|lora"):
        Runner(which, in_situ_quant="Q8_0")
    hf = hf_model("MixtralForCausalLM", num_local_experts=4, num_experts_per_tok=2, **WIDE)
    experts = save_hf(hf, tmp_path / "experts")
    with pytest.raises(UnsupportedError, match="stack of experts"):
        continued(experts, "FP8", write_uqff=str(tmp_path / "out" / "x.uqff"))
    assert not (tmp_path / "out").exists()


def test_f8q8_rounds_as_its_layout_says() -> None:
    quantizer = plugin_manager().resolve(plugin_manager().get("quantizers", "f8q8"))()
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    packed = quantizer.quantize(x, "f8q8")
    block = packed.blocks.reshape(-1, 33)[0]
    scale = block[:1].view(torch.float8_e4m3fn).float() / 448
    assert torch.equal(packed.dequantize()[0, :32], block[1:].view(torch.int8) * scale)
    assert float((packed.dequantize() - x).norm() / x.norm()) < 0.05
    again = quantizer.deserialize(quantizer.serialize(packed))
    assert torch.equal(again.dequantize(), packed.dequantize())


def test_native_kernels_multiply_with_f8q8_and_hold_it_once() -> None:
    library = pytest.importorskip("tramontane_kernels_cpu.library")
    if library.why_not():
        pytest.skip(library.why_not())
    from tramontane_kernels_cpu.linear import packed_linear, prepare, supports

    quantizer = plugin_manager().resolve(plugin_manager().get("quantizers", "f8q8"))()
    generator = torch.Generator().manual_seed(1)
    packed = quantizer.quantize(torch.randn(20, 96, generator=generator))
    assert supports(format=packed.format, **packed.facts)
    blocks, dense = packed.blocks, packed.dequantize()
    assert torch.equal(packed.affine().dequantize(), dense)
    x = torch.randn(5, 96, generator=generator)
    operand = prepare(packed)
    found, expected = packed_linear(x, operand), x @ dense.T
    assert float((found - expected).norm() / expected.norm()) < 0.01  # activations are int8
    assert packed._blocks is None
    assert torch.equal(packed.blocks, blocks)
    assert torch.equal(packed.gather(torch.tensor([7, 2])), dense[[7, 2]])
    assert torch.equal(packed.rows(3, 9).dequantize(), dense[3:9])
