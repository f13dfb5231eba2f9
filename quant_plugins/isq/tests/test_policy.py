"""What the policy decides for a model, on the meta device where nothing costs anything."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from tramontane.errors import MissingPluginError, ValidationError
from tramontane.hooks import PluginManager, QuantizerSpec, hookimpl, plugin_manager
from tramontane.nn import ExpertLinear, GatedExperts, MoE, PackedLinear, SoftmaxTopK
from tramontane.protocols import InSituSettings
from tramontane_isq.policy import IsqPolicy
from tramontane_isq.types import Types, canonical

CPU = torch.device("cpu")


class Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.self_attn = nn.ModuleDict({"q_proj": nn.Linear(width, 256)})
        self.mlp = MoE(width, GatedExperts(4, width, 512), 4, SoftmaxTopK(2))
        self.norm = nn.LayerNorm(width)


class Toy(nn.Module):
    ISQ_LAYERS = (r"visual\.proj",)

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(512, width)
        self.layers = nn.ModuleList(Layer(width) for _ in range(2))
        self.visual = nn.ModuleDict({"proj": nn.Linear(width, 256), "rest": nn.Linear(width, 256)})
        self.lm_head = nn.Linear(width, 512, bias=False)


def plan(width: int = 256, aliases: dict[str, str] | None = None, **settings: Any) -> Any:
    with torch.device("meta"):
        model = Toy(width)
    policy = IsqPolicy(plugin_manager())
    return policy.plan(model, aliases or {}, InSituSettings(**settings), CPU)


def types(found: Any) -> dict[str, str | None]:
    return {n: d.type.name if d.type else None for n, d in found.decisions.items()}


@pytest.mark.parametrize(
    ("asked", "name"),
    [("Q4K", "q4k"), ("q4_k", "q4k"), ("Q4_K_M", "q4k"), ("q3_K_L", "q3k"), (" 2 ", "q2k"),
     ("IQ4_XS", "iq4_xs")],
)  # fmt: skip
def test_names_of_types(asked: str, name: str) -> None:
    assert Types(plugin_manager(), CPU).get(asked).name == name


def test_every_type_of_mistral_rs_is_known_in_either_case() -> None:
    found = Types(plugin_manager(), CPU)
    names = [
        "Q4_0",
        "Q4_1",
        "Q5_0",
        "Q5_1",
        "Q8_0",
        "Q8_1",
        "Q2K",
        "Q3K",
        "Q4K",
        "Q5K",
        "Q6K",
        "Q8K",
        "HQQ4",
        "HQQ8",
        "FP8",
        "AFQ2",
        "AFQ3",
        "AFQ4",
        "AFQ6",
        "AFQ8",
        "F8Q8",
        "MXFP4",
    ]
    for name in names:
        assert found.get(name).name == found.get(name.lower()).name == name.lower()


def test_every_type_of_ggml_is_resolved_by_each_of_its_names() -> None:
    found = Types(plugin_manager(), CPU)
    for bits in range(2, 7):
        for written in (f"Q{bits}K", f"q{bits}_k", f"Q{bits}_K_S", f"Q{bits}_K_M"):
            assert found.get(written).name == canonical(written) == f"q{bits}k"


def test_numbers_go_by_the_device() -> None:
    class Afq:
        @hookimpl
        def tramontane_quantizers(self) -> list[QuantizerSpec]:
            return [QuantizerSpec(name="apple", target="builtins:object", isq_aliases=("afq6",))]

    metal = torch.device("mps")
    for number, elsewhere, there in (
        ("2", "q2k", "afq2"), ("3", "q3k", "afq3"), ("4", "q4k", "afq4"), ("5", "q5k", "q5k"),
        ("6", "q6k", "afq6"), ("8", "q8_0", "afq8"),
    ):  # fmt: skip
        for device in (CPU, torch.device("cuda", 0)):
            assert Types(plugin_manager(), device).get(number).name == elsewhere
        assert Types(plugin_manager(), metal).get(number).name == there
    plugins = PluginManager([Afq()], discover=False)
    assert Types(plugins, metal).get("6").name == "afq6"
    with pytest.raises(MissingPluginError, match="tramontane-gguf"):
        Types(plugins, metal).get("5")


def test_unknown_names_list_the_choices() -> None:
    for wrong in ("Q7K", "7", "", "gguf", "isq"):
        with pytest.raises(ValidationError, match=r"choose one of .*Q4K.* 2, 3, 4, 5, 6, 8"):
            Types(plugin_manager(), CPU).get(wrong)


def test_linears_and_experts_are_packed_and_nothing_else() -> None:
    found = types(plan(type_name="Q4K"))
    layer = {
        "self_attn.q_proj": "q4k",
        "mlp.experts.gate_proj": "q4k",
        "mlp.experts.up_proj": "q4k",
        "mlp.experts.down_proj": "q4k",
    }
    layers = {f"layers.{i}.{n}.weight": t for i in range(2) for n, t in layer.items()}
    assert found == layers | {"visual.proj.weight": "q4k", "lm_head.weight": "q6k"}


@pytest.mark.parametrize(
    ("head", "asked"),
    [
        ("afq6", "AFQ2 AFQ3 AFQ4"),
        ("afq8", "AFQ6 AFQ8"),
        ("q6k", "Q2K Q3K Q4K Q4_0 Q4_1"),
        ("q8_0", "Q5K Q6K Q8K Q5_0 Q5_1 Q8_0 Q8_1"),
    ],
)
def test_the_head_gets_a_finer_type(head: str, asked: str) -> None:
    for name in asked.split():
        found = types(plan(type_name=name))
        assert found["lm_head.weight"] == head
        assert found["layers.0.self_attn.q_proj.weight"] == name.lower()


def test_a_tied_head_is_packed_once_for_both() -> None:
    found = plan(type_name="Q4K", aliases={"lm_head.weight": "embed_tokens.weight"})
    assert types(found)["embed_tokens.weight"] == "q6k"
    assert "lm_head.weight" not in found.decisions
    sizes = {n: d.packed_bytes for n, d in found.decisions.items()}
    assert sizes["embed_tokens.weight"] == 512 * 210
    assert found.packed_bytes == sum(sizes.values())
    assert found.elements == 512 * 256 + 256 * 256 + 2 * (256 * 256 + 3 * 4 * 256 * 512)


def test_odd_widths_get_a_stand_in_and_impossible_ones_stay(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        found = types(plan(96, type_name="Q4K"))
    assert found["layers.0.self_attn.q_proj.weight"] == "q4_1"
    assert found["layers.0.mlp.experts.down_proj.weight"] == "q4k"
    assert found["lm_head.weight"] == "q5_1"
    assert "Q4_1 instead of Q4K" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        found = types(plan(40, type_name="Q8_0"))
    assert found["lm_head.weight"] is None
    assert found["layers.0.mlp.experts.down_proj.weight"] == "q8_0"
    assert [r.message for r in caplog.records if "stay unquantized" in r.message].__len__() == 1


@pytest.mark.parametrize(
    ("asked", "instead"),
    [("Q2K", "q4_0"), ("Q3K", "q4_0"), ("Q4K", "q4_1"), ("Q5K", "q5_0"), ("Q6K", "q5_1"),
     ("Q8K", "q8_1"), ("IQ4_XS", "iq4_nl"), ("Q4_0", "q4_0"), ("MXFP4", "mxfp4")],
)  # fmt: skip
def test_what_stands_in_where_rows_are_no_whole_blocks(asked: str, instead: str) -> None:
    assert types(plan(96, type_name=asked))["layers.0.self_attn.q_proj.weight"] == instead
    # Rows of 40 are whole blocks of no type.
    assert types(plan(40, type_name=asked))["layers.0.self_attn.q_proj.weight"] is None


def test_moqe_touches_experts_only() -> None:
    found = types(plan(type_name="Q4K", organization="moqe"))
    assert {n for n in found if "experts" not in n and "visual.proj" not in n} == set()
    assert len([n for n in found if "experts" in n]) == 6
    dense = nn.Module()
    dense.lm_head = nn.Linear(256, 256)
    settings = InSituSettings(type_name="Q4K", organization="moqe")
    with pytest.raises(ValidationError, match="has no routed experts"):
        IsqPolicy(plugin_manager()).plan(dense, {}, settings, CPU)


def test_overrides_win_over_everything() -> None:
    pins = {
        "lm_head.weight": "Q2K",
        "layers.1.self_attn.q_proj.weight": "8",
        "embed_tokens.weight": "Q4_0",
        "layers.0.mlp.gate.weight": "Q8_0",
    }
    found = types(plan(type_name="Q4K", override=pins.get))
    assert found["lm_head.weight"] == "q2k"
    assert found["layers.1.self_attn.q_proj.weight"] == "q8_0"
    assert found["layers.0.self_attn.q_proj.weight"] == "q4k"
    assert found["embed_tokens.weight"] == "q4_0"
    alone = types(plan(override=pins.get))
    assert alone == {n: t for n, t in found.items() if n in pins}
    with pytest.raises(ValidationError, match="'Q11'"):
        plan(override=lambda name: "Q11" if name.startswith("layers.0") else None)


def test_importance_must_be_of_this_model() -> None:
    q = "layers.0.self_attn.q_proj"
    with pytest.raises(ValidationError, match="knows none of the weights"):
        plan(type_name="Q4K", importance={"blk.0.attn_q": torch.ones(256)})
    with pytest.raises(ValidationError, match=rf"128.* for {q}"):
        plan(type_name="Q4K", importance={q: torch.ones(128)})
    plan(type_name="Q4K", importance={
        q: torch.ones(256), "layers.0.mlp.experts.up_proj": torch.ones(4, 256)
    })  # fmt: skip


def test_packing_goes_by_importance_unless_a_stand_in_is_used() -> None:
    seen = []

    class Recorder:
        def packed_bytes(self, shape: Any, name: str) -> int | None:
            return 1 if name == "q4_1" or shape[-1] % 256 == 0 else None

        def quantize(self, weight: Any, name: str, *, importance: Any = None) -> Any:
            seen.append((name, importance is not None))
            return SimpleNamespace()

    class Plugin:
        @hookimpl
        def tramontane_quantizers(self) -> list[QuantizerSpec]:
            names = ("q4k", "q4_1", "q6k", "q5_1")
            return [QuantizerSpec(name="rec", target=f"{__name__}:x", isq_aliases=names)]

    plugins = PluginManager([Plugin()], discover=False)
    plugins.resolve = lambda spec: Recorder  # type: ignore[method-assign]
    model = nn.Module()
    model.wide, model.odd = nn.Linear(256, 4), nn.Linear(96, 4)
    model.experts = ExpertLinear(2, 256, 4)
    importance = {"wide": torch.ones(256), "odd": torch.ones(96), "experts": torch.ones(2, 256)}
    settings = InSituSettings(type_name="Q4K", importance=importance)
    made = IsqPolicy(plugins).plan(model, {}, settings, CPU)
    for name in ("wide.weight", "odd.weight", "experts.weight"):
        made.pack(name, torch.zeros(2, 4, 256))
    assert seen == [("q4k", True), ("q4_1", False), ("q4k", True)]
    untouched = torch.zeros(3)
    assert made.pack("norm.weight", untouched) is untouched


def test_packed_modules_are_packed_anew() -> None:
    policy = IsqPolicy(plugin_manager())
    quantizer = Types(plugin_manager(), CPU).get("Q8_0").quantizer
    model = nn.Module()
    model.up = PackedLinear(quantizer.quantize(torch.randn(4, 256), "q8_0"))
    made = policy.plan(model, {}, InSituSettings(type_name="Q4K"), CPU)
    assert made.pack("up.weight", model.up.packed).format == "gguf.q4_k"
