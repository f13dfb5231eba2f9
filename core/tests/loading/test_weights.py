"""Binding of weights into modules on the meta device."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tramontane.errors import CheckpointError, ConfigError
from tramontane.loading.loader import build
from tramontane.loading.rules import arrange
from tramontane.loading.tensors import SafetensorsFormat
from tramontane.loading.weights import Binder, wanted_names, weight_bytes
from tramontane.nn import (
    ExpertLinear,
    GatedExperts,
    MoE,
    NarrowExpertLinear,
    PackedEmbedding,
    PackedExpertLinear,
    PackedLinear,
    PackedStack,
    SoftmaxTopK,
)
from tramontane.protocols import Split, Stack, Transpose

from .conftest import (  # noqa: TID252
    MemoryCheckpoint,
    RowPacked,
    Tiny,
    TinyConfig,
    tiny_config,
    tiny_tensors,
)

CPU = torch.device("cpu")


def config(**changes):
    return TinyConfig.from_dict(tiny_config(**changes))


def load(tensors, *, dtype=torch.float32, steps=(), architecture=Tiny, **changes):
    checkpoint = MemoryCheckpoint(tensors)
    model = build(architecture, config(**changes), checkpoint, dtype=dtype, device=CPU, steps=steps)
    return model, checkpoint


def test_missing_and_extra_tensors_name_the_nearest():
    tensors = tiny_tensors()
    tensors["model.layers.1.down_projj.weight"] = tensors.pop("model.layers.1.down_proj.weight")
    with pytest.raises(CheckpointError) as info:
        load(tensors)
    message = str(info.value)
    assert "lacks 'model.layers.1.down_proj.weight' (it has 'model.layers.1.down_projj" in message
    assert "no place for 'model.layers.1.down_projj.weight'" in message


def test_a_tie_works_with_either_name_or_both():
    tensors = tiny_tensors()
    embedding, head = tensors["model.embed_tokens.weight"], tensors["lm_head.weight"]
    for absent, expected in (("lm_head.weight", embedding), ("model.embed_tokens.weight", head)):
        stored = {n: t for n, t in tensors.items() if n != absent}
        model, _ = load(stored, tie_word_embeddings=True)
        assert model.lm_head.weight is model.model.embed_tokens.weight
        assert torch.equal(model.lm_head.weight, expected)
        with pytest.raises(CheckpointError, match=absent):
            load(stored, tie_word_embeddings=False)
    model, _ = load(tensors, tie_word_embeddings=True)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight, embedding)
    untied, _ = load(tensors)
    assert torch.equal(untied.lm_head.weight, head)


def test_parameters_share_the_file_when_dtypes_agree(tmp_path):
    from safetensors.torch import save_file

    tensors = tiny_tensors()
    save_file(tensors, tmp_path / "m.safetensors")
    checkpoint = SafetensorsFormat().open([tmp_path / "m.safetensors"])
    model = build(Tiny, config(), checkpoint, dtype=torch.float32, device=CPU)
    for name, parameter in model.named_parameters():
        assert parameter.data_ptr() == checkpoint.tensor(name).data_ptr()
        assert torch.equal(parameter, tensors[name])
        assert not parameter.requires_grad
    checkpoint.close()
    assert torch.equal(model.lm_head.weight, tensors["lm_head.weight"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_dtypes_are_converted_and_their_pages_let_go(dtype):
    tensors = tiny_tensors()
    model, checkpoint = load(tensors, dtype=dtype)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, tensors[name].to(dtype))
    assert sorted(checkpoint.released) == sorted(tensors)


class Exact(nn.Module):
    FLOAT32 = frozenset({"bias"})
    WEIGHTS = (Stack(r"bias\.(\d)", "bias"),)

    def __init__(self, config):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(2))
        self.bias = nn.Parameter(torch.empty(2))


def test_what_a_module_keeps_in_float32_is_not_rounded():
    stored = {"weight": torch.full((2,), 1.001), "bias": torch.full((2,), 1.001)}
    parts = {"weight": stored["weight"], "bias.0": stored["bias"][0], "bias.1": stored["bias"][1]}
    for tensors in (stored, parts):
        model, _ = load(tensors, dtype=torch.bfloat16, architecture=Exact)
        assert model.weight.dtype == torch.bfloat16
        assert torch.equal(model.bias, stored["bias"])


def test_equal_dtypes_keep_their_pages():
    _, checkpoint = load(tiny_tensors())
    assert checkpoint.released == []


def test_a_wrong_shape_names_tensor_and_shapes():
    tensors = tiny_tensors()
    tensors["model.layers.0.up_proj.bias"] = torch.ones(5)
    with pytest.raises(CheckpointError, match=r"layers\.0\.up_proj\.bias must have shape \(24,\)"):
        load(tensors)


@pytest.mark.parametrize("dtype", [torch.int32, torch.float8_e4m3fn])
def test_a_wrong_dtype_is_refused(dtype):
    tensors = tiny_tensors()
    name = "model.layers.0.down_proj.weight"
    tensors[name] = tensors[name].to(dtype)
    with pytest.raises(CheckpointError, match="need the plug-in of their format"):
        load(tensors)


def test_packed_weights_stay_packed_where_a_module_can_use_them():
    tensors = tiny_tensors()
    packed = {n: RowPacked.pack(t) if t.dim() == 2 else t for n, t in tensors.items()}
    packed["model.layers.0.norm.weight"] = RowPacked.pack(tensors["model.layers.0.norm.weight"])
    model, _ = load(packed)
    layer = model.model.layers[0]
    assert isinstance(layer.up_proj, PackedLinear)
    assert layer.up_proj.packed is packed["model.layers.0.up_proj.weight"]
    assert torch.equal(layer.up_proj.bias, tensors["model.layers.0.up_proj.bias"])
    assert isinstance(model.model.embed_tokens, PackedEmbedding)
    assert isinstance(layer.norm.weight, nn.Parameter)
    expected = packed["model.layers.0.norm.weight"].dequantize()
    assert torch.equal(layer.norm.weight, expected)
    x = torch.randn(3, 16)
    weight = layer.up_proj.packed.dequantize()
    torch.testing.assert_close(layer.up_proj(x), x @ weight.T + layer.up_proj.bias)


def test_a_packed_tie_is_one_weight():
    tensors = {n: RowPacked.pack(t) if t.dim() == 2 else t for n, t in tiny_tensors().items()}
    del tensors["lm_head.weight"]
    model, checkpoint = load(tensors, tie_word_embeddings=True)
    assert model.lm_head.packed is model.model.embed_tokens.packed
    assert weight_bytes(model) == checkpoint.nbytes


class Fused(nn.Module):
    """Reads one fused tensor into three linears, and experts out of single ones."""

    WEIGHTS = (
        Split(r"qkv\.(weight|bias)", (r"q.\1", r"k.\1", r"v.\1"), (4, 2, 2)),
        Stack(r"experts\.(\d+)\.weight", "experts.weight"),
    )

    def __init__(self, _):
        super().__init__()
        self.v = nn.Linear(3, 2)  # not in the order of the parts
        self.q = nn.Linear(3, 4)
        self.k = nn.Linear(3, 2)
        self.experts = ExpertLinear(3, 6, 5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_split_and_stack_give_the_right_rows(dtype):
    torch.manual_seed(0)
    tensors = {"qkv.weight": torch.randn(8, 3), "qkv.bias": torch.randn(8)}
    tensors |= {f"experts.{i}.weight": torch.randn(5, 6) for i in range(3)}
    model, checkpoint = load(tensors, architecture=Fused, dtype=dtype)
    weight = torch.cat([model.q.weight, model.k.weight, model.v.weight])
    assert torch.equal(weight, tensors["qkv.weight"].to(dtype))
    bias = torch.cat([model.q.bias, model.k.bias, model.v.bias])
    assert torch.equal(bias, tensors["qkv.bias"].to(dtype))
    experts = torch.stack([tensors[f"experts.{i}.weight"] for i in range(3)]).to(dtype)
    assert torch.equal(model.experts.weight, experts)
    assert {f"experts.{i}.weight" for i in range(3)} <= set(checkpoint.released)
    if dtype is torch.float32:
        assert model.q.weight.data_ptr() == tensors["qkv.weight"].data_ptr()


def test_packed_tensors_are_split_by_rows_and_stacks_may_come_packed():
    weight = RowPacked.pack(torch.randn(8, 3))
    stack = RowPacked(torch.ones(3, 5, 6, dtype=torch.int8), torch.ones(3, 5, 1))
    tensors = {"qkv.weight": weight, "qkv.bias": torch.randn(8), "experts.weight": stack}
    model, _ = load(tensors, architecture=Fused)
    assert torch.equal(model.k.packed.dequantize(), weight.dequantize()[4:6])
    assert isinstance(model.experts, PackedExpertLinear)


def test_packed_experts_are_stacked_where_they_are():
    fused = {"qkv.weight": torch.randn(8, 3), "qkv.bias": torch.randn(8)}
    parts = [RowPacked.pack(torch.randn(5, 6)) for _ in range(3)]
    experts = {f"experts.{i}.weight": part for i, part in enumerate(parts)}
    model, _ = load({**fused, **experts}, architecture=Fused)
    assert isinstance(model.experts.packed, PackedStack)
    assert [model.experts.packed.expert(i) for i in range(3)] == parts
    x = torch.randn(2, 6)
    assert torch.equal(model.experts(x, 1), x @ parts[1].dequantize().T)
    picked = model.experts.packed.gather(torch.tensor([2, 0]))
    assert torch.equal(picked, torch.stack([parts[2].dequantize(), parts[0].dequantize()]))
    experts["experts.2.weight"] = torch.randn(5, 6)  # one plain part makes all of them plain
    model, _ = load({**fused, **experts}, architecture=Fused)
    assert torch.equal(model.experts.weight[1], parts[1].dequantize())
    assert torch.equal(model.experts.weight[2], experts["experts.2.weight"])


@pytest.fixture
def narrow_kernel(monkeypatch):
    def reads(stored, dtype, device):
        return stored is torch.bfloat16

    monkeypatch.setattr("tramontane.loading.dtype.multiplies_narrow", reads)


class Routed(nn.Module):
    """A mixture alone."""

    def __init__(self, _):
        super().__init__()
        self.mlp = MoE(6, GatedExperts(2, 6, 5), 2, SoftmaxTopK(1))


def test_activations_are_rounded_for_no_router(narrow_kernel):
    with torch.device("meta"):
        model = Routed(None)
    tensors = {name: torch.randn(p.shape).bfloat16() for name, p in model.named_parameters()}
    model = Binder(
        model,
        MemoryCheckpoint(tensors),
        arrange(tensors, wanted_names(model), (), None),
        dtype=torch.float32,
        device=CPU,
    ).run()
    assert model.mlp.gate.exact
    assert not model.mlp.experts.up_proj.exact


def test_experts_keep_narrow_floats_that_a_kernel_reads(narrow_kernel):
    fused = {"qkv.weight": torch.randn(8, 3), "qkv.bias": torch.randn(8)}
    parts = [torch.randn(5, 6).bfloat16() for _ in range(3)]
    tensors = fused | {f"experts.{i}.weight": part for i, part in enumerate(parts)}
    model, _ = load(tensors, architecture=Fused)
    assert isinstance(model.experts, NarrowExpertLinear)
    assert torch.equal(model.experts.weight, torch.stack(parts))
    x = torch.randn(2, 6)
    torch.testing.assert_close(model.experts(x, 2), x @ parts[2].float().T)
    tensors["experts.1.weight"] = torch.randn(5, 6)  # one wider part is not rounded
    model, _ = load(tensors, architecture=Fused)
    assert type(model.experts) is ExpertLinear
    assert torch.equal(model.experts.weight[1], tensors["experts.1.weight"])


def test_split_and_stack_of_wrong_sizes():
    good = {"qkv.weight": torch.randn(8, 3), "qkv.bias": torch.randn(8)}
    experts = {f"experts.{i}.weight": torch.randn(5, 6) for i in range(3)}
    with pytest.raises(CheckpointError, match=r"length 9 along axis 0.*4 \+ 2 \+ 2"):
        load({**good, **experts, "qkv.weight": torch.randn(9, 3)}, architecture=Fused)
    with pytest.raises(CheckpointError, match="4 tensors are stacked"):
        load({**good, **experts, "experts.3.weight": torch.randn(5, 6)}, architecture=Fused)
    with pytest.raises(CheckpointError, match=r"experts\.1\.weight has shape \(6, 5\)"):
        load({**good, **experts, "experts.1.weight": torch.randn(6, 5)}, architecture=Fused)


def test_a_split_along_the_second_axis():
    class Sideways(nn.Module):
        WEIGHTS = (Split(r"ab\.weight", ("a.weight", "b.weight"), (2, 1), axis=1),)

        def __init__(self, _):
            super().__init__()
            self.a = nn.Linear(2, 4, bias=False)
            self.b = nn.Linear(1, 4, bias=False)

    fused = torch.randn(4, 3)
    model, _ = load({"ab.weight": fused}, architecture=Sideways)
    assert torch.equal(torch.cat([model.a.weight, model.b.weight], 1), fused)
    with pytest.raises(CheckpointError, match=r"ab\.weight is packed .* axis 1: .* first axis"):
        load({"ab.weight": RowPacked.pack(fused)}, architecture=Sideways)


class Woven(nn.Module):
    """Experts out of one stack [experts, in, out] in which gate and up take turns."""

    WEIGHTS = (
        Transpose(r"gate_up", "gate_up.weight"),
        Split(r"gate_up\.weight", ("gate.weight", "up.weight"), (4, 4), axis=1, interleaved=True),
    )

    def __init__(self, _):
        super().__init__()
        self.gate = ExpertLinear(3, 5, 4)
        self.up = ExpertLinear(3, 5, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parts_that_take_turns_in_a_transposed_stack(dtype):
    stack = torch.randn(3, 5, 8)
    model, checkpoint = load({"gate_up": stack}, architecture=Woven, dtype=dtype)
    assert torch.equal(model.gate.weight, stack.to(dtype).mT[:, 0::2])
    assert torch.equal(model.up.weight, stack.to(dtype).mT[:, 1::2])
    assert model.gate.weight.is_contiguous()
    assert "gate_up" in checkpoint.released
    with pytest.raises(CheckpointError, match=r"gate_up has length 9 along axis 1"):
        load({"gate_up": torch.randn(3, 5, 9)}, architecture=Woven)
    with pytest.raises(CheckpointError, match=r"gate_up has shape \(5,\); a matrix is needed"):
        load({"gate_up": torch.randn(5)}, architecture=Woven)


def test_a_packed_stack_keeps_its_axes_and_is_parted_where_it_lies():
    class StridedPacked(RowPacked):
        def part(self, rows, axis=0):
            assert axis == 1
            return type(self)(self.codes[:, rows], self.scales[:, rows])

    whole = StridedPacked(
        torch.arange(120, dtype=torch.int8).view(3, 8, 5), 1 + torch.arange(24.0).view(3, 8, 1)
    )
    model, checkpoint = load({"gate_up": whole}, architecture=Woven)
    assert torch.equal(model.up.packed.dequantize(), whole.dequantize()[:, 1::2])
    assert weight_bytes(model) == checkpoint.nbytes


def test_parts_of_unequal_length_cannot_take_turns():
    rules = (Split("ab", ("a", "b"), (2, 1), interleaved=True),)
    with pytest.raises(ConfigError, match=r"parts of lengths \(2, 1\) take turns"):
        arrange(["ab"], ["a", "b"], rules, None)


def test_steps_see_every_module_with_weights_and_may_replace_it():
    seen = []

    def quantize(name, module):
        seen.append((name, type(module)))
        if isinstance(module, nn.Linear) and "layers" in name:
            return PackedLinear(RowPacked.pack(module.weight), module.bias)
        return module

    def wrap(name, module):
        return nn.Sequential(module) if name == "model.layers.1.down_proj" else module

    model, _ = load(tiny_tensors(), steps=(quantize, wrap))
    assert [n for n, _ in seen][:2] == ["model.embed_tokens", "model.layers.0.norm"]
    assert isinstance(model.model.layers[0].up_proj, PackedLinear)
    assert isinstance(model.model.layers[1].down_proj[0], PackedLinear)
    assert isinstance(model.lm_head, nn.Linear)


def test_persistent_buffers_are_loaded_and_lost_ones_are_reported():
    class Buffers(nn.Module):
        def __init__(self, transient):
            super().__init__()
            self.register_buffer("bias", torch.zeros(3))
            self.register_buffer("steps", torch.zeros(2, dtype=torch.int64))
            if transient:
                self.register_buffer("table", torch.ones(2), persistent=False)

    def bind(transient):
        with torch.device("meta"):
            model = Buffers(transient)
        checkpoint = MemoryCheckpoint({"bias": torch.ones(3), "steps": torch.tensor([4, 5])})
        arrangement = arrange(checkpoint.names(), wanted_names(model), (), None)
        return Binder(model, checkpoint, arrangement, dtype=torch.bfloat16, device=CPU).run()

    model = bind(False)
    assert model.bias.dtype is torch.bfloat16
    assert model.steps.tolist() == [4, 5]
    assert not list(model.parameters())
    with pytest.raises(CheckpointError, match="leaves table on the meta device"):
        bind(True)


def test_progress_ends_at_the_total():
    calls = []
    checkpoint = MemoryCheckpoint(tiny_tensors())
    build(
        Tiny,
        config(),
        checkpoint,
        dtype=torch.float32,
        device=CPU,
        on_progress=lambda *call: calls.append(call),
    )
    assert [name for *_, name in calls] == [
        n for n in wanted_names(Tiny(config())) if n in checkpoint.tensors
    ]
    assert calls[-1][:2] == (checkpoint.nbytes, checkpoint.nbytes)
    assert [done for done, *_ in calls] == sorted(done for done, *_ in calls)
