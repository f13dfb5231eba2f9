"""Layers on several devices, and topology files, from a user's seat.

This machine may have no accelerator. ``cpu:0`` stands for one: torch tells it from ``cpu``, and
computes there all the same. ``meta`` stands for one where only the devices of operands matter.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from tramontane import (
    CompletionRequest,
    ConfigError,
    MemoryPlanError,
    Runner,
    TextAutoMapParams,
    ValidationError,
    Which,
)
from tramontane.hooks import plugin_manager
from tramontane.loading import device as device_module
from tramontane.loading import placement
from tramontane.loading.device import Room
from tramontane.nn import install_transfers, transfer
from tramontane.pipeline.embedding import pack
from tramontane_testkit.data import data_path
from tramontane_testkit.models import hf_model, save_hf, tiny_llama

CPU, SECOND, META = torch.device("cpu"), torch.device("cpu", 0), torch.device("meta")
MIB = 1 << 20
DEEP = {"num_hidden_layers": 4, "hidden_size": 256, "intermediate_size": 256}


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("deep") / "model", **DEEP)


@pytest.fixture
def second(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with one accelerator."""
    for module in (device_module, placement):
        monkeypatch.setattr(module, "accelerators", lambda: [SECOND])


@pytest.fixture
def crossings(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, tuple[int, ...]]]:
    """Tensors that go from device to device; those that leave ``meta`` become zeros."""
    seen: list[tuple[str, str, tuple[int, ...]]] = []
    true = transfer.moved

    def moved(value: Any, device: torch.device) -> Any:
        if not isinstance(value, torch.Tensor):
            return true(value, device)
        if value.device != device:
            seen.append((str(value.device), str(device), tuple(value.shape)))
        leaves = value.is_meta and device != META
        return torch.zeros(value.shape, dtype=value.dtype) if leaves else value.to(device)

    monkeypatch.setattr(transfer, "moved", moved)
    return seen


def text(runner: Runner, count: int = 8) -> str:
    request = CompletionRequest(prompt="ab", max_tokens=count, temperature=0.0, ignore_eos=True)
    return runner.send_completion_request(request).choices[0].text


def pipeline(runner: Runner) -> Any:
    return runner._models.peek(None)


def places(runner: Runner) -> list[torch.device]:
    """Devices of the layers' caches."""
    return list(pipeline(runner)._engine._executor._layer_devices)


def formats(runner: Runner) -> list[str]:
    """Format of a linear of each layer, ``plain`` for one that is not packed."""
    layers = pipeline(runner).live_weights._model.model.layers
    packed = [getattr(layer.mlp.up_proj, "packed", None) for layer in layers]
    return ["plain" if weight is None else weight.format for weight in packed]


def topology(directory: Path, content: str) -> str:
    path = directory / "topology.yml"
    path.write_text(content)
    return str(path)


# Transfers ----------------------------------------------------------------------------------


def forward(devices: list[torch.device], *, transfers: bool = True) -> torch.Tensor:
    """Logits of a Llama whose layers are on ``devices``, begun and ended on the CPU."""
    plugins = plugin_manager()
    cls = plugins.resolve(plugins.architecture("Llama"))
    config = cls.Config.from_dict(
        {
            "architectures": ["LlamaForCausalLM"],
            "vocab_size": 11,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": len(devices),
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 32,
            "rms_norm_eps": 1e-5,
        }
    )
    torch.manual_seed(0)
    model = cls(config)
    for layer, device in zip(model.model.layers, devices, strict=True):
        layer.to(device)
    if transfers:
        install_transfers(model.model.layers, devices, CPU)
    caches = [
        spec.allocate(
            num_blocks=8, block_size=4, num_seqs=2, dtype=torch.float32, device=device
        )
        for spec, device in zip(cls.cache_specs(config), devices, strict=True)
    ]  # fmt: skip
    with torch.no_grad():
        logits: torch.Tensor = model.logits(model(pack([[1, 2, 3, 4], [5]], 4, CPU), caches))
    return logits


def test_each_layer_finds_all_of_its_arguments_on_its_device(crossings: list[Any]) -> None:
    # Operands on two devices are an error, as on any machine.
    assert forward([CPU, META, META, CPU, META]).device == CPU
    hidden = [(source, target) for source, target, shape in crossings if shape == (5, 16)]
    assert hidden == [("cpu", "meta"), ("meta", "cpu")] * 2
    # Batch and RoPE are copied once, not for each layer.
    copied = [shape for _, target, shape in crossings if target == "meta"]
    assert copied.count((5, 1, 8)) == 2  # cos and sin
    assert len(crossings) == len(hidden) + 2 + 7  # tensors of a batch without states


def test_without_transfers_that_fails() -> None:
    with pytest.raises((RuntimeError, NotImplementedError)):
        forward([CPU, META, CPU], transfers=False)


def test_one_device_has_no_hooks_and_two_compute_the_same() -> None:
    def hooks(devices: list[torch.device]) -> list[int]:
        layers = [torch.nn.Linear(1, 1) for _ in devices]
        install_transfers(layers, devices, CPU)
        return [len(layer._forward_pre_hooks) + len(layer._forward_hooks) for layer in layers]

    assert hooks([CPU, CPU, CPU]) == [0, 0, 0]
    assert hooks([CPU, SECOND, CPU, CPU]) == [0, 1, 1, 0]
    assert hooks([CPU, SECOND]) == [0, 2]
    assert torch.equal(forward([CPU, SECOND, CPU]), forward([CPU, CPU, CPU]))


@pytest.mark.gpu
def test_a_gpu_and_the_cpu_share_a_model(deep: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    with Runner(Which.Plain(str(deep), dtype="F32"), num_device_layers=["0:99"]) as runner:
        expected = text(runner)
    with Runner(Which.Plain(str(deep), dtype="F32"), num_device_layers=["0:2"]) as runner:
        assert [place.type for place in places(runner)] == ["cuda", "cuda", "cpu", "cpu"]
        assert text(runner) == expected


# Placement ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("second")
@pytest.mark.parametrize("asked", [["0:3"], "0:3", 3, "3"])
def test_num_device_layers(deep: Path, asked: Any, crossings: list[Any]) -> None:
    with Runner(Which.Plain(str(deep))) as runner:
        assert places(runner) == [SECOND] * 4
        expected = text(runner)
    assert not crossings
    with Runner(Which.Plain(str(deep)), num_device_layers=asked) as runner:
        assert places(runner) == [SECOND] * 3 + [CPU]
        assert text(runner) == expected


@pytest.mark.parametrize("wrong", ["0-3", ["0:3", "0:1"], ["3", "4"], True, [], "x:1", [1.5], "-1"])
def test_num_device_layers_that_say_nothing_clear(deep: Path, wrong: Any) -> None:
    with pytest.raises(ValidationError, match="num_device_layers"):
        Runner(Which.Plain(str(deep)), num_device_layers=wrong)


@pytest.mark.usefixtures("second")
def test_what_does_not_fit_goes_to_the_cpu_and_is_told(
    deep: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with Runner(Which.Plain(str(deep))) as runner:
        expected = text(runner)
    # A layer takes 1.6 MiB, all outside them 0.5 MiB, the largest tensor and scores as much.
    sizes = {SECOND: 6 * MIB, CPU: 1 << 33}
    monkeypatch.setattr(placement, "memory_of", lambda place: Room(sizes[place], sizes[place]))
    which = Which.Plain(str(deep), auto_map_params=TextAutoMapParams(64, 1))
    told: list[bool] = []

    def loading(done: int, total: int, name: str) -> None:
        told.append("do not fit on the accelerators and run on the CPU" in caplog.text)

    with (
        caplog.at_level(logging.INFO, "tramontane"),
        Runner(which, max_seqs=1, on_progress=loading) as runner,
    ):
        assert told
        assert all(told)  # before the first weight
        found = places(runner)
        assert found[0] == SECOND
        assert found[-1] == CPU
        assert text(runner) == expected
        runner.send_re_isq("Q8_0")
        assert set(formats(runner)) == {"gguf.q8_0"}
        assert len(text(runner)) > 0
    assert "device map: layer" in caplog.text
    sizes[SECOND] = sizes[CPU] = 3 * MIB
    with pytest.raises(MemoryPlanError, match=r"fit on no placement of the 4 layers; .* cpu:0 "):
        Runner(which)
    with pytest.raises(MemoryPlanError, match="num_device_layers puts 4 layers on cpu:0"):
        Runner(which, num_device_layers=4)


def test_devices_that_are_not_there(deep: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="puts 2 layers on accelerator 7; this machine has"):
        Runner(Which.Plain(str(deep)), num_device_layers=["7:2"])
    path = topology(tmp_path, "0-2:\n  device: cuda[77]")
    with pytest.raises(ConfigError, match=r"line 1, '0-2': this machine has no cuda:77; it has"):
        Runner(Which.Plain(str(deep), topology=path))


@pytest.mark.usefixtures("second")
def test_devices_of_a_topology(deep: Path, tmp_path: Path) -> None:
    path = topology(tmp_path, "1-3:\n  device: cpu\n")
    with Runner(Which.Plain(str(deep), topology=path)) as runner:
        assert places(runner) == [SECOND, CPU, CPU, SECOND]
        split = text(runner)
    with Runner(Which.Plain(str(deep), topology=path), num_device_layers=0) as runner:
        assert places(runner) == [CPU] * 4
        assert text(runner) == split


# Types of single layers ---------------------------------------------------------------------


def test_types_of_single_layers_with_and_without_a_type_for_all(deep: Path, tmp_path: Path) -> None:
    path = topology(tmp_path, "0-2: {isq: Q8_0}\n'/layers\\.1\\..*up_proj|lm_head/': {isq: Q5K}\n")
    which = Which.Plain(str(deep), topology=path)
    q8, q5, q4 = "gguf.q8_0", "gguf.q5_k", "gguf.q4_k"
    with Runner(which) as runner:
        assert formats(runner) == [q8, q5, "plain", "plain"]
        # A pin counts before the finer type that the head gets otherwise.
        assert pipeline(runner).live_weights._model.lm_head.packed.format == q5
        assert len(text(runner)) > 0
    with Runner(which, in_situ_quant="Q4K") as runner:
        assert formats(runner) == [q8, q5, q4, q4]
        runner.send_re_isq("Q4_0")
        assert formats(runner) == [q8, q5, "gguf.q4_0", "gguf.q4_0"]


def test_an_expression_may_name_the_tensors_of_the_checkpoint(tmp_path: Path) -> None:
    hf = hf_model("MixtralForCausalLM", **DEEP, num_local_experts=2, num_experts_per_tok=1)
    directory = save_hf(hf, tmp_path / "moe")
    path = topology(tmp_path, r"'/block_sparse_moe\.experts\.\d+\.w1/': {isq: Q8_0}")
    with Runner(Which.Plain(str(directory), topology=path)) as runner:
        packed = {
            name: module.packed.format
            for name, module in pipeline(runner).live_weights._model.named_modules()
            if hasattr(module, "packed")
        }
    assert set(packed.values()) == {"gguf.q8_0"}
    assert all("experts" in name and "gate" in name for name in packed)
    assert len(packed) == 4


@pytest.mark.slow
def test_a_file_of_mistralrs_packs_a_model_of_32_layers(tmp_path: Path) -> None:
    path = data_path("mistralrs", "topologies", "isq.yml")
    directory = tiny_llama(tmp_path / "model", **{**DEEP, "num_hidden_layers": 32})
    with Runner(Which.Plain(str(directory), topology=str(path))) as runner:
        found = formats(runner)
        assert len(text(runner, 2)) > 0
    quarters = ["gguf.q3_k", "gguf.q4_k", "gguf.q6_k"]
    assert found == [f for f in quarters for _ in range(8)] + ["plain"] * 4 + ["gguf.q8_0"] * 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("0-2: {isq: Q9}", r"topology.yml, line 1, '0-2': isq: 'Q9' is no type to quantize to"),
        ("2-6: {isq: Q4K}", "the model has 4 layers, 0 to 3; end the range at 4"),
        ("'/vision/': {isq: Q4K}", "found in no name"),
        ("0-2: {type: Q4K}", "no key 'type'"),
    ],
)
def test_topologies_that_are_refused(
    deep: Path, tmp_path: Path, content: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Runner(Which.Plain(str(deep), topology=topology(tmp_path, content)))
    with pytest.raises(ConfigError, match=r"gone\.yml cannot be read"):
        Runner(Which.Plain(str(deep), topology=str(tmp_path / "gone.yml")))
