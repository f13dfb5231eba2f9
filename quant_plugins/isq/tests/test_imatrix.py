"""Importance matrices: every kind of file, and every way in which one can be damaged."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tramontane.errors import CheckpointError
from tramontane.hooks import plugin_manager
from tramontane_isq.imatrix import (
    Imatrix,
    for_modules,
    gguf_names,
    read_imatrix,
    write_cimatrix,
    write_gguf,
)

PLUGINS = plugin_manager()
Q, DOWN = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.arange(12.0)


def legacy(entries: list[tuple[str, int, torch.Tensor]], tail: bytes = b"") -> bytes:
    """As llama.cpp wrote them: sums already divided by rows, times the number of calls."""
    parts = [struct.pack("<i", len(entries))]
    for name, calls, mean in entries:
        raw = name.encode()
        values = (mean * max(calls, 1)).numpy().astype("<f4").tobytes()
        parts += [struct.pack("<i", len(raw)), raw, struct.pack("<ii", calls, mean.numel()), values]
    return b"".join(parts) + tail


def seed_cimatrix(entries: list[torch.Tensor | None]) -> bytes:
    """The first generation of mistral.rs: places in a list."""
    parts = [struct.pack("<Q", len(entries))]
    for place, values in enumerate(entries):
        parts.append(struct.pack("<QB", place, values is not None))
        if values is not None:
            parts.append(struct.pack("<Q", values.numel()) + values.numpy().tobytes())
    return b"".join(parts)


def saved(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("ending", ["dat", "imatrix", "bin"])
def test_the_old_form_of_llama_cpp(ending: str, tmp_path: Path) -> None:
    tail = struct.pack("<ii", 7, 4) + b"text"
    entries = [("blk.0.attn_q.weight", 5, Q), ("blk.0.ffn_down_exps.weight", 0, DOWN)]
    found = read_imatrix(saved(tmp_path / f"m.{ending}", legacy(entries, tail)), PLUGINS)
    assert torch.allclose(found.values["blk.0.attn_q"], Q)
    assert torch.equal(found.values["blk.0.ffn_down_exps"], DOWN)
    assert (found.chunks, found.datasets) == (7, ("text",))


def test_the_new_form_of_llama_cpp(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(str(tmp_path / "m.gguf"), "llama")
    writer.kv_data[0].clear()
    writer.add_string("general.type", "imatrix")
    writer.add_array("imatrix.datasets", ["a.txt", "b.txt"])
    writer.add_uint32("imatrix.chunk_count", 3)
    sums = np.arange(8, dtype=np.float32).reshape(2, 4)
    for name, tensor in {
        "blk.0.attn_q.weight.in_sum2": sums[:1] * 2,
        "blk.0.attn_q.weight.counts": np.array([[2.0]], np.float32),
        "blk.0.ffn_up_exps.weight.in_sum2": sums,
        "blk.0.ffn_up_exps.weight.counts": np.array([[2.0], [0.0]], np.float32),
    }.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = read_imatrix(tmp_path / "m.gguf", PLUGINS)
    assert torch.equal(found.values["blk.0.attn_q"], torch.from_numpy(sums[0]))
    stack = found.values["blk.0.ffn_up_exps"]
    assert torch.equal(stack, torch.from_numpy(np.stack([sums[0] / 2, np.zeros(4)])).float())
    assert (found.chunks, found.datasets) == (3, ("a.txt", "b.txt"))


def test_both_generations_of_mistral_rs(tmp_path: Path) -> None:
    first = saved(tmp_path / "a.cimatrix", seed_cimatrix([None, Q, DOWN, None]))
    found = read_imatrix(first, PLUGINS)
    assert found.positions.keys() == {1, 2}
    assert torch.equal(found.positions[1], Q)
    write_cimatrix(tmp_path / "b.cimatrix", {"model.layers.0.self_attn.q_proj": Q, "lm_head": DOWN})
    found = read_imatrix(tmp_path / "b.cimatrix", PLUGINS)
    assert torch.equal(found.values["model.layers.0.self_attn.q_proj"], Q)
    assert torch.equal(found.values["lm_head"], DOWN)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["a.cimatrix", "b.cimatrix"]


def test_what_is_written_as_gguf_comes_back(tmp_path: Path) -> None:
    values = {"blk.0.attn_q": Q, "blk.0.ffn_up_exps": DOWN.view(3, 4)}
    write_gguf(tmp_path / "m.gguf", Imatrix(values=values, datasets=("x",), chunks=2), PLUGINS)
    found = read_imatrix(tmp_path / "m.gguf", PLUGINS)
    assert found.values.keys() == values.keys()
    assert all(torch.equal(found.values[n], v) for n, v in values.items())
    reader = gguf.GGUFReader(str(tmp_path / "m.gguf"))
    assert "general.architecture" not in reader.fields
    assert {t.name for t in reader.tensors} >= {"blk.0.attn_q.weight.counts"}


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("model.layers.3.self_attn.q_proj", ["blk.3.attn_q", "blk.3.attn_qkv"]),
        ("model.layers.3.self_attn.o_proj", ["blk.3.attn_output"]),
        ("model.layers.12.mlp.experts.down_proj", ["blk.12.ffn_down_exps"]),
        ("model.layers.0.mlp.shared_expert.up_proj", ["blk.0.ffn_up_shexp"]),
        ("model.layers.0.mlp.gate_up_proj", ["blk.0.ffn_up", "blk.0.ffn_gate"]),
        ("model.layers.0.block_sparse_moe.experts.w2", ["blk.0.ffn_down_exps"]),
        ("model.layers.0.shared_mlp.up_proj", ["blk.0.ffn_up_shexp", "blk.0.ffn_up"]),
        ("model.layers.0.mamba.out_proj", ["blk.0.ssm_out"]),
        ("model.layers.0.self_attn.kv_b_proj", ["blk.0.attn_kv_b", "blk.0.attn_v_b"]),
        ("lm_head", ["output"]),
        ("model.embed_tokens", []),
    ],
)
def test_names_of_modules(module: str, names: list[str]) -> None:
    assert gguf_names(module) == names


def test_a_file_may_have_any_of_the_names() -> None:
    given = {f"model.layers.0.self_attn.{n}_proj": torch.full((4,), i) for i, n in enumerate("qkv")}
    given |= {"model.layers.0.mlp.gate_proj": torch.zeros(4), "head": torch.ones(4)}
    given["model.layers.0.mlp.up_proj"] = torch.ones(4)
    best = Imatrix(values=given).by_gguf_name()
    assert list(best) == [
        "blk.0.attn_q", "blk.0.attn_k", "blk.0.attn_v", "blk.0.ffn_gate", "head", "blk.0.ffn_up",
    ]  # fmt: skip
    every = Imatrix(values=given).by_gguf_name(every=True)
    assert every.keys() == {*best, "blk.0.attn_qkv"}
    # A tensor's own statistics go before those of one that reads the same.
    assert float(every["blk.0.ffn_up"][0]) == 1


def test_modules_find_theirs_by_name_and_by_place() -> None:
    modules = [
        ("lm_head", (8, 4)),
        ("model.layers.0.self_attn.q_proj", (4, 4)),
        ("model.layers.0.self_attn.k_proj", (4, 4)),
        ("model.layers.0.mlp.experts.down_proj", (3, 4, 4)),
    ]
    given = Imatrix(values={"blk.0.attn_qkv": Q, "blk.0.ffn_down_exps": DOWN})
    found = for_modules(given, modules)
    assert torch.equal(found["model.layers.0.self_attn.k_proj"], Q)
    assert torch.equal(found["model.layers.0.mlp.experts.down_proj"], DOWN.view(3, 4))
    placed = for_modules(Imatrix(values={}, positions={2: Q, 3: DOWN}), modules)
    assert placed.keys() == {modules[2][0], modules[3][0]}
    with pytest.raises(CheckpointError, match="layer 4 of mistral"):
        for_modules(Imatrix(values={}, positions={4: Q}), modules)


@pytest.mark.parametrize(
    ("data", "name", "problem"),
    [
        (b"", "m.dat", "ends within the number of entries"),
        (struct.pack("<i", -1), "m.dat", "states -1 entries"),
        (struct.pack("<i", 2**31 - 1) + b"x" * 40, "m.dat", "entries"),
        (legacy([("q.weight", 1, Q)])[:-1], "m.dat", "has 4 numbers, and 15 bytes are left"),
        (legacy([("q.weight", 1, Q)]) + b"x", "m.dat", "1 bytes follow"),
        (legacy([("q.weight", 1, -Q)]), "m.dat", "negative or not finite"),
        (legacy([("q", 1, Q), ("q", 1, Q)]), "m.dat", "q occurs twice"),
        (seed_cimatrix([Q])[:-2], "m.cimatrix", "1? ?numbers"),
        (struct.pack("<QQB", 1, 0, 9), "m.cimatrix", "flag 9"),
        (struct.pack("<QQ", 1, 2**60) + b"xx", "m.cimatrix", "length of"),
        (b"GGUF" + b"\0" * 20, "m.gguf", "m.gguf"),
    ],
)
def test_damage_is_told(data: bytes, name: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=problem):
        read_imatrix(saved(tmp_path / name, data), PLUGINS)
    with pytest.raises(CheckpointError, match="No such file"):
        read_imatrix(tmp_path / "absent.dat", PLUGINS)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.sampled_from([0, 1]),
    cut=st.integers(0, 200),
    place=st.integers(0, 199),
    byte=st.integers(0, 255),
)
def test_a_mutated_file_is_read_or_refused(
    seed: int, cut: int, place: int, byte: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole = bytearray(
        legacy([("blk.0.attn_q.weight", 3, Q), ("b", 1, DOWN)]) if seed == 0
        else seed_cimatrix([Q, None, DOWN])
    )  # fmt: skip
    whole[place % len(whole)] = byte
    path = tmp_path_factory.getbasetemp() / ("fuzz.dat" if seed == 0 else "fuzz.cimatrix")
    path.write_bytes(bytes(whole[: cut or None]))
    with contextlib.suppress(CheckpointError):
        read_imatrix(path, PLUGINS)
