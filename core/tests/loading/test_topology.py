"""Topology files: what they may say, and what is wrong with those that are refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tramontane.errors import ConfigError
from tramontane.loading.layers import LayerNames
from tramontane.loading.topology import Topology, parse_device
from tramontane_testkit.data import data_path

LAYER_OF = LayerNames("model.layers").index


def names(num_layers=8):
    inside = ("self_attn.q_proj", "mlp.gate", "mlp.experts.up_proj", "input_layernorm")
    layers = [f"model.layers.{i}.{part}.weight" for i in range(num_layers) for part in inside]
    return ["model.embed_tokens.weight", *layers, "model.norm.weight", "lm_head.weight"]


def origins(name):
    """Checkpoints have a tensor for each expert."""
    return (
        [name.replace("experts.", f"experts.{e}.") for e in range(2)] if "experts" in name else []
    )


def parsed(text):
    return Topology.parse(text, "t.yml")


def pinned(text, name):
    return parsed(text).override(LAYER_OF, origins)(name)


# What a file says ---------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["isq.yml", "isq_and_device.yml", "isq_regex.yml"])
def test_the_files_of_mistralrs_are_read(file):
    path = data_path("mistralrs", "topologies", file)
    found = Topology.read(path)
    assert found.pins_types
    assert found.pins_devices == (file == "isq_and_device.yml")
    assert len(found.entries) == (2 if file == "isq_regex.yml" else 4)


def test_a_file_of_mistralrs_places_and_packs_32_layers():
    found = Topology.read(data_path("mistralrs", "topologies", "isq_and_device.yml"))
    found.check(names(32), LAYER_OF, origins)
    types = found.override(LAYER_OF, origins)
    each = [types(f"model.layers.{i}.self_attn.q_proj.weight") for i in range(32)]
    assert each == [*["Q3K"] * 8, *["Q4K"] * 8, *["Q6K"] * 8, *[None] * 4, *["Q8_0"] * 4]
    devices = found.layer_devices(names(32), LAYER_OF, origins)
    first = dict.fromkeys([*range(8), *range(28, 32)], torch.device("cuda", 0))
    assert devices == first | dict.fromkeys(range(8, 16), torch.device("cpu"))


def test_an_expression_of_mistralrs_finds_the_layers_of_a_multimodal_model():
    found = Topology.read(data_path("mistralrs", "topologies", "isq_regex.yml"))
    inside = "model.language_model.layers.7"
    names = [f"{inside}.self_attn.q_proj.weight", f"{inside}.mlp.up_proj.weight", "lm_head.weight"]
    layer_of = LayerNames("model.language_model.layers").index
    types = found.override(layer_of, lambda name: ())
    assert [types(name) for name in names] == ["afq3", "afq4", None]


def test_ranges_end_before_their_last_number_and_a_number_is_one_layer():
    text = "0-2: {isq: Q3K, device: 'cuda[1]'}\n'2': {isq: 4}\n5:\n  device: cpu\n"
    topology = parsed(text)
    types = [pinned(text, f"model.layers.{i}.self_attn.q_proj.weight") for i in range(6)]
    assert types == ["Q3K", "Q3K", "4", None, None, None]
    assert topology.layer_devices(names(), LAYER_OF, origins) == {
        0: torch.device("cuda", 1),
        1: torch.device("cuda", 1),
        5: torch.device("cpu"),
    }
    assert pinned(text, "lm_head.weight") is None
    assert pinned(text, "model.layers.0.mlp.gate.weight") is None  # the router


def test_an_expression_counts_before_a_range_and_the_later_one_before_the_earlier():
    text = r"""
'/up_proj/': {isq: Q5K}
'/layers\.1\..*proj/': {isq: Q6K}
'/experts\.1\.up_proj/': {isq: Q8_0}
0-8: {isq: Q4K}
"""
    assert pinned(text, "model.layers.0.self_attn.q_proj.weight") == "Q4K"
    assert pinned(text, "model.layers.1.self_attn.q_proj.weight") == "Q6K"
    # The third names a tensor of the checkpoint, of which the parameter is stacked.
    assert pinned(text, "model.layers.1.mlp.experts.up_proj.weight") == "Q8_0"
    assert pinned(r"'/mlp\.gate/': {isq: Q8_0}", "model.layers.0.mlp.gate.weight") == "Q8_0"
    assert pinned("'/lm_head/': {isq: Q6K}", "lm_head.weight") == "Q6K"


def test_an_expression_places_whole_layers():
    text = r"""
0-8: {device: cpu}
'/layers\.[67]\./': {device: 'cuda[0]'}
"""
    found = parsed(text).layer_devices(names(), LAYER_OF, origins)
    assert [str(found[i]) for i in range(8)] == ["cpu"] * 6 + ["cuda:0"] * 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cpu", "cpu"),
        ("cuda[0]", "cuda:0"),
        ("CUDA[12]", "cuda:12"),
        ("cuda:1", "cuda:1"),
        ("metal[0]", "mps:0"),
        ("mps", "mps:0"),
        *((bad, None) for bad in ("cuda", "cuda[-1]", "gpu", "cpu[0]", "cuda[0] ]", "cuda[99999]")),
    ],
)
def test_names_of_devices(text, expected):
    found = parse_device(text)
    assert found == (None if expected is None else torch.device(expected))


# What is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0-4: {isq: Q4K}\n2-6: {isq: Q6K}", r"line 2, '2-6': it overlaps 0-4 of line 1"),
        ("4: {isq: Q4K}\n0-8: {device: cpu}", r"line 2, '0-8': it overlaps 4 of line 1"),
        ("0-4: {isq: Q4K}\n0-4: {isq: Q6K}", r"line 2, '0-4': line 1 selects the same"),
        ("4-4: {isq: Q4K}", r"line 1, '4-4': the range is empty.*for layer 4 alone write 4"),
        ("8-4: {isq: Q4K}", "the range is empty"),
        ("0-8: {qtype: Q4K}", r"'0-8': no key 'qtype'; known: isq, device"),
        ("0-8: {devise: cpu}", "no key 'devise'; did you mean 'device'"),
        ("0-8: {isq: Q4K, isq: Q6K}", "isq is given twice"),
        ("0-8: {isq: [Q4K]}", "isq must be a type such as Q4K, not a collection"),
        ("0-8: {isq: true}", "isq must be a type such as Q4K, not true or false"),
        ("0-8: {isq: 4.5}", "not a number"),
        ("0-8: {isq: }", "not nothing"),
        ("0-8: {device: 0}", r"device must be a name such as cuda\[0\], not a number"),
        ("0-8: {device: gpu0}", r"device 'gpu0' is unknown; use cpu, cuda\[0\]"),
        ("0-8:", "give isq, device or both below it"),
        ("0-8: Q4K", "give isq, device or both below it"),
        ("layers: {isq: Q4K}", "'layers': a selector is a range"),
        ("-1: {isq: Q4K}", "a selector is a range"),
        ("? [0, 8]\n: {isq: Q4K}", "it must be 0-8, 8 or"),
        ("'/(/': {isq: Q4K}", "no regular expression"),
        ("", "holds no selectors; it must read like"),
        ("- 0-8", "holds no selectors"),
        ("Q4K", "holds no selectors"),
        ("0-8: {isq: Q4K}\n---\n8: {isq: Q4K}", "not valid YAML"),
        ("0-8: {isq: 'Q4K}", "not valid YAML"),
        ("0-8: {isq: *gone}", "not valid YAML: found undefined alias"),
        ("\x07", "not valid YAML"),
        # Hostile: code, references to itself, a bomb of references, depth.
        ("!!python/object/apply:os.system ['true']", "holds no selectors"),
        ("0-8: {isq: !!python/name:os.system ''}", "isq must be a type such as Q4K, not"),
        ("&a 0-8: {isq: *a, device: cpu}\n<<: {isq: Q4K}", "a selector is a range"),
        ("0-8: &a {isq: *a}", "isq must be a type such as Q4K, not a collection"),
        (
            "a: &a [x, x]\n" + "".join(f"b{i}: &b{i} [*a, *a]\n" for i in range(50)),
            "'a': a selector is a range",
        ),
        ("0-8: " + "[" * 5000, "nested too deeply"),
        (f"{'9' * 500}: {{isq: Q4K}}", "a selector is a range"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told(text, message):
    with pytest.raises(ConfigError, match=f"(?s)topology t.yml.*{message}"):
        parsed(text)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match=r"gone\.yml cannot be read: No such file"):
        Topology.read(tmp_path / "gone.yml")
    big, binary = tmp_path / "big.yml", tmp_path / "binary.yml"
    big.write_bytes(b"#" * (300 << 10))
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="larger than 256 KiB"):
        Topology.read(big)
    with pytest.raises(ConfigError, match="no UTF-8 text"):
        Topology.read(binary)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("4-9: {isq: Q4K}", "'4-9': the model has 8 layers, 0 to 7; end the range at 8"),
        ("8: {isq: Q4K}", "'8': the model has 8 layers, 0 to 7; remove this entry"),
        ("'/vision/': {isq: Q4K}", "found in no name of the model's weights: model.embed_tokens"),
    ],
)
def test_selectors_that_the_model_has_nothing_for(text, message):
    with pytest.raises(ConfigError, match=message):
        parsed(text).check(names(), LAYER_OF, origins)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("'/q_proj/': {device: cpu}", r"found in model\.layers\.0\.self_attn\.q_proj\.weight but"),
        ("'/lm_head/': {device: cpu}", "device is for layers; lm_head.weight lies outside them"),
    ],
)
def test_devices_of_parts_of_a_layer(text, message):
    topology = parsed(text)
    topology.check(names(), LAYER_OF, origins)
    with pytest.raises(ConfigError, match=message):
        topology.layer_devices(names(), LAYER_OF, origins)


@given(st.text(max_size=60) | st.binary(max_size=60).map(lambda raw: raw.decode("latin-1")))
def test_no_text_does_anything_but_parse_or_raise_a_config_error(text):
    problem = ""
    try:
        parsed(text)
    except ConfigError as error:
        problem = str(error)
    assert not problem or "topology t.yml" in problem
