"""Old and new keys of ``config.json`` come to the same."""

from __future__ import annotations

import json

import pytest

from tramontane.errors import ConfigError, SourceError
from tramontane.loading.config import normalize, read_config
from tramontane.nn import read_rope_parameters

LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"factor": 4.0, "original_max_position_embeddings": 32768}
LONG = {"short_factor": [1.0], "long_factor": [2.0]}
PAIRS = {
    "none": (None, {"rope_type": "default"}),
    "linear": ({"type": "linear", "factor": 2.0}, {"rope_type": "linear", "factor": 2.0}),
    "dynamic": ({"type": "dynamic", "factor": 2.0}, {"rope_type": "dynamic", "factor": 2.0}),
    "llama3": ({"rope_type": "llama3", **LLAMA3}, {"rope_type": "llama3", **LLAMA3}),
    "yarn": ({"type": "yarn", **YARN}, {"rope_type": "yarn", **YARN}),
    "longrope": ({"type": "longrope", **LONG}, {"rope_type": "longrope", **LONG}),
}
"""``rope_scaling`` of old files; what joins ``rope_theta`` in ``rope_parameters`` of new ones."""


@pytest.mark.parametrize("case", PAIRS)
def test_old_and_new_rope_keys_mean_the_same(case):
    old, new = PAIRS[case]
    before = normalize({"rope_theta": 5e5, "max_position_embeddings": 64, "rope_scaling": old})
    after = normalize(
        {"max_position_embeddings": 64, "rope_parameters": {"rope_theta": 5e5, **new}}
    )
    assert before["rope_parameters"] == after["rope_parameters"] == {"rope_theta": 5e5, **new}
    assert before["rope_theta"] == after["rope_theta"] == 5e5
    assert before["rope_scaling"] == after["rope_scaling"]
    assert (after["rope_scaling"] is None) == (case == "none")
    assert normalize(before) == before
    assert read_rope_parameters(before) == read_rope_parameters(after)


def test_rope_of_each_kind_of_layer_is_kept():
    parameters = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    config = normalize({"rope_parameters": parameters})
    assert config["rope_parameters"] == parameters
    assert config["rope_theta"] == 1e6
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}
    assert config["rope_local_base_freq"] == 1e4


def test_partial_rotary_factor_is_found_in_both_places():
    config = normalize({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}})
    assert config["partial_rotary_factor"] == 0.5


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("value", ["bfloat16", "torch.bfloat16"])
def test_dtype_under_both_names(key, value):
    config = normalize({key: value})
    assert config["dtype"] == config["torch_dtype"] == "bfloat16"


def test_nested_configurations_are_normalized_too():
    config = normalize({"text_config": {"hidden_size": 4, "rope_theta": 7.0, "dtype": "float32"}})
    assert config["text_config"]["rope_parameters"]["rope_theta"] == 7.0
    assert config["text_config"]["torch_dtype"] == "float32"


def test_nothing_is_invented():
    assert normalize({"a": 1}) == {"a": 1}


@pytest.mark.parametrize(
    ("data", "key"),
    [
        ({"rope_scaling": "linear"}, "rope_scaling"),
        ({"rope_parameters": [1]}, "rope_parameters"),
        ({"rope_parameters": {"full_attention": 3}}, "rope_parameters.full_attention"),
        ({"dtype": 16}, "dtype"),
    ],
)
def test_wrong_kinds_name_the_key(data, key):
    with pytest.raises(ConfigError, match=key):
        normalize(data)


def test_a_missing_config_lists_what_is_there(tmp_path):
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(SourceError, match=r"no config\.json; it holds other\.json"):
        read_config(tmp_path)


@pytest.mark.parametrize("content", [b"{", b"[1]", b"", b"\xff\xfe", b"[" * 200_000])
def test_a_corrupt_config_is_named(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(SourceError, match=r"config\.json"):
        read_config(tmp_path)


def test_configs_of_transformers_old_and_new(tmp_path):
    transformers = pytest.importorskip("transformers")
    scaling = {"rope_type": "llama3", **LLAMA3}
    transformers.LlamaConfig(rope_parameters={"rope_theta": 5e5, **scaling}).save_pretrained(
        tmp_path
    )
    config = read_config(tmp_path)
    old = json.loads((tmp_path / "config.json").read_text())
    del old["rope_parameters"]
    (tmp_path / "config.json").write_text(
        json.dumps({**old, "rope_theta": 5e5, "rope_scaling": scaling})
    )
    assert read_rope_parameters(read_config(tmp_path)) == read_rope_parameters(config)
