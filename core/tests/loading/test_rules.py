"""Weight rules: from the names of a checkpoint to those of a model."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tramontane.errors import CheckpointError, ConfigError
from tramontane.loading.rules import Cut, Stacked, Stored, arrange
from tramontane.protocols import Drop, Rename, Split, Stack


def test_rules_make_recipes_of_names():
    stored = [
        "old.a.weight",
        "junk.1",
        "x.layers.0.rotary_emb.inv_freq",
        "l0.e.1.w",
        "l0.e.0.w",
        "qkv.weight",
    ]
    rules = (
        Drop(r"junk\.\d+"),
        Rename(r"old\.(.*)", r"new.\1"),
        Stack(r"l(\d+)\.e\.(\d+)\.w", r"layer.\1.experts.weight"),
        Split(r"qkv\.(weight|bias)", (r"q.\1", r"k.\1"), ("q_size", 3)),
    )
    wanted = ["new.a.weight", "layer.0.experts.weight", "q.weight", "k.weight"]
    found = arrange(stored, wanted, rules, SimpleNamespace(q_size=5))
    assert found.recipes == {
        "new.a.weight": Stored("old.a.weight"),
        "layer.0.experts.weight": Stacked((Stored("l0.e.0.w"), Stored("l0.e.1.w"))),
        "q.weight": Cut(Stored("qkv.weight"), (5, 3), 0),
        "k.weight": Cut(Stored("qkv.weight"), (5, 3), 1),
    }


def test_rules_follow_one_another():
    """Fused experts: split first, then stacked."""
    stored = [f"e.{i}.gate_up" for i in range(2)]
    rules = (
        Split(r"e\.(\d+)\.gate_up", (r"e.\1.gate", r"e.\1.up"), (2, 2)),
        Stack(r"e\.(\d+)\.gate", "gate"),
        Stack(r"e\.(\d+)\.up", "up"),
    )
    found = arrange(stored, ["gate", "up"], rules, None)
    assert found.recipes["up"] == Stacked(
        tuple(Cut(Stored(f"e.{i}.gate_up"), (2, 2), 1) for i in range(2))
    )


def test_layers_beyond_the_last_are_dropped():
    stored = ["layers.0.w", "layers.9.w", "layers.10.w", "layers.11.w", "other.11.w"]
    rules = (Drop(r"layers\.(\d+)\..*", beyond="num_layers"),)
    wanted = ["layers.0.w", "layers.9.w", "other.11.w"]
    arrangement = arrange(stored, wanted, rules, SimpleNamespace(num_layers=10))
    assert list(arrangement.recipes) == wanted


def test_collisions_gaps_and_unknown_properties():
    with pytest.raises(CheckpointError, match="another one"):
        arrange(["a", "b"], ["b"], (Rename("a", "b"),), None)
    with pytest.raises(CheckpointError, match="lacks number 1"):
        arrange(["e.0", "e.2"], ["e"], (Stack(r"e\.(\d+)", "e"),), None)
    with pytest.raises(ConfigError, match="reads q_size"):
        arrange(["a"], ["a"], (Split("a", ("b", "c"), ("q_size", 1)),), SimpleNamespace())


def test_many_missing_tensors_are_counted():
    wanted = [f"layer.{i}.weight" for i in range(30)]
    with pytest.raises(CheckpointError, match="and 22 more"):
        arrange([], wanted, (), None)
