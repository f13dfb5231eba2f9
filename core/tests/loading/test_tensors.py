"""Safetensors and PyTorch checkpoints: equal values, no copies, damage refused."""

from __future__ import annotations

import json
import pickle
import struct

import pytest
import torch
from safetensors.torch import save_file

from tramontane.errors import CheckpointError
from tramontane.loading.tensors import DTYPES, SafetensorsFormat
from tramontane.loading.torch_bin import TorchBinFormat
from tramontane.protocols import Checkpoint


def open_one(path):
    return SafetensorsFormat().open([path])


def write(path, header, data=b"", *, length=None):
    """A safetensors file with any header, right or wrong."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_every_dtype_is_read_as_the_reference_writes_it(tmp_path):
    torch.manual_seed(0)
    tensors = {}
    for name, dtype in DTYPES.items():
        raw = torch.randint(0, 2, (3, 16), dtype=torch.uint8)
        tensors[name] = raw.bool() if dtype is torch.bool else raw.view(dtype)
    save_file(tensors, tmp_path / "all.safetensors")
    checkpoint = open_one(tmp_path / "all.safetensors")
    assert isinstance(checkpoint, Checkpoint)
    assert set(checkpoint.names()) == set(tensors)
    assert checkpoint.nbytes == sum(t.nbytes for t in tensors.values())
    for name, tensor in tensors.items():
        read = checkpoint.tensor(name)
        assert read.dtype == tensor.dtype
        assert read.shape == tensor.shape
        assert torch.equal(read.view(torch.uint8), tensor.view(torch.uint8))


def test_tensors_are_views_of_the_file_and_outlive_the_checkpoint(tmp_path):
    path = tmp_path / "m.safetensors"
    save_file({"a": torch.arange(1000.0), "b": torch.ones(3)}, path)
    checkpoint = open_one(path)
    tensor = checkpoint.tensor("a")
    assert tensor.data_ptr() == checkpoint.tensor("a").data_ptr()
    checkpoint.release("a")
    checkpoint.close()
    assert torch.equal(tensor, torch.arange(1000.0))
    tensor.zero_()  # copy on write: the file must not change
    assert torch.equal(open_one(path).tensor("a"), torch.arange(1000.0))


def test_data_at_an_odd_address_are_read_all_the_same(tmp_path):
    header = {"a": entry("U8", (1,), (0, 1)), "b": entry("F32", (2,), (1, 9))}
    path = write(tmp_path / "m.safetensors", header, b"\x07" + struct.pack("<2f", 1.5, -2.0))
    assert open_one(path).tensor("b").tolist() == [1.5, -2.0]


def test_empty_and_scalar_tensors(tmp_path):
    save_file({"none": torch.empty(0, 4), "one": torch.tensor(3.0)}, tmp_path / "m.safetensors")
    checkpoint = open_one(tmp_path / "m.safetensors")
    assert checkpoint.tensor("none").shape == (0, 4)
    assert checkpoint.tensor("one").item() == 3.0


DAMAGED = {
    "empty": (lambda p: p.write_bytes(b""), "cannot be mapped"),
    "too short": (lambda p: p.write_bytes(b"abc"), "3 bytes"),
    "absurd header length": (lambda p: write(p, {}, length=2**63), "header of 9223372036854775808"),
    "header past the end": (lambda p: write(p, {}, length=50), "header of 50 bytes"),
    "no JSON": (lambda p: write(p, b"{nonsense}"), "not valid JSON"),
    "no UTF-8": (lambda p: write(p, b"\xff\xfe{}"), "not valid JSON"),
    "deep nesting": (lambda p: write(p, b"[" * 200_000), "not valid JSON"),
    "no object": (lambda p: write(p, [1]), "no JSON object"),
    "key twice": (lambda p: write(p, b'{"a": 1, "a": 2}'), "occurs twice"),
    "field absent": (lambda p: write(p, {"a": {"dtype": "F32"}}), "'a' lacks"),
    "unknown dtype": (lambda p: write(p, {"a": entry("F7")}, b"0" * 8), "unknown dtype 'F7'"),
    "dtype a list": (lambda p: write(p, {"a": entry([])}, b"0" * 8), "unknown dtype"),
    "negative shape": (lambda p: write(p, {"a": entry(shape=(-2,))}, b"0" * 8), "counts"),
    "fractional shape": (lambda p: write(p, {"a": entry(shape=(2.0,))}, b"0" * 8), "counts"),
    "offsets reversed": (lambda p: write(p, {"a": entry(offsets=(8, 0))}, b"0" * 8), "begin, end"),
    "three offsets": (lambda p: write(p, {"a": entry(offsets=(0, 4, 8))}, b"0" * 8), "begin, end"),
    "truncated": (lambda p: write(p, {"a": entry()}, b"0" * 7), "truncated: fetch it again"),
    "out of range": (lambda p: write(p, {"a": entry(offsets=(2**62, 2**62 + 8))}), "truncated"),
    "size differs": (lambda p: write(p, {"a": entry(shape=(3,))}, b"0" * 8), "needs 12 bytes"),
    "shape overflows": (
        lambda p: write(p, {"a": entry(shape=(2**62, 2**62))}, b"0" * 8),
        "needs",
    ),
    "overlap": (
        lambda p: write(p, {"a": entry(), "b": entry(offsets=(4, 12))}, b"0" * 12),
        "'b' overlaps 'a'",
    ),
    "gap": (
        lambda p: write(p, {"a": entry(), "b": entry(offsets=(9, 17))}, b"0" * 17),
        "1 bytes before tensor 'b'",
    ),
    "trailing bytes": (lambda p: write(p, {"a": entry()}, b"0" * 20), "last 12 bytes"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_files_are_refused_with_their_name(tmp_path, case):
    path = tmp_path / "damaged.safetensors"
    damage, message = DAMAGED[case]
    damage(path)
    with pytest.raises(CheckpointError) as info:
        open_one(path)
    assert message in str(info.value)
    assert "damaged.safetensors" in str(info.value)


def test_every_truncation_and_every_flipped_header_byte_is_survived(tmp_path):
    path = tmp_path / "m.safetensors"
    save_file({"a": torch.ones(4), "b": torch.ones(2, 2)}, path)
    whole = path.read_bytes()
    for length in range(0, len(whole), 3):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            open_one(path)
    for position in range(len(whole) - 32):
        damaged = bytearray(whole)
        damaged[position] ^= 0x15
        path.write_bytes(bytes(damaged))
        try:
            checkpoint = open_one(path)
        except CheckpointError:
            continue
        for name in checkpoint.names():  # e.g. another name or dtype of equal size
            checkpoint.tensor(name).view(torch.uint8).sum()


def test_a_tensor_in_two_shards(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "one.safetensors")
    save_file({"a": torch.ones(2)}, tmp_path / "two.safetensors")
    with pytest.raises(
        CheckpointError, match=r"'a' is in one\.safetensors and in two\.safetensors"
    ):
        SafetensorsFormat().open([tmp_path / "one.safetensors", tmp_path / "two.safetensors"])


def test_an_unknown_tensor_names_the_nearest(tmp_path):
    save_file({"model.norm.weight": torch.ones(2)}, tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match=r"nearest is 'model\.norm\.weight'"):
        open_one(tmp_path / "m.safetensors").tensor("model.norm.weigth")


def test_torch_checkpoints_of_both_layouts(tmp_path):
    state = {"a": torch.arange(6.0).view(2, 3).t(), "b": torch.ones(2, dtype=torch.bfloat16)}
    torch.save(state, tmp_path / "new.bin")
    torch.save(state, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    for name in ("new.bin", "old.bin"):
        checkpoint = TorchBinFormat().open([tmp_path / name])
        assert isinstance(checkpoint, Checkpoint)
        assert checkpoint.nbytes == 28
        assert torch.equal(checkpoint.tensor("a"), state["a"])
        assert torch.equal(checkpoint.tensor("b"), state["b"])


class Evil:
    ran = False

    def __reduce__(self):
        return (setattr, (Evil, "ran", True))


def test_pickled_code_is_refused_and_not_run(tmp_path):
    for new in (True, False):
        torch.save(
            {"a": torch.ones(1), "b": Evil()},
            tmp_path / "evil.bin",
            _use_new_zipfile_serialization=new,
        )
        with pytest.raises(CheckpointError, match="would run code"):
            TorchBinFormat().open([tmp_path / "evil.bin"])
    (tmp_path / "raw.bin").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(CheckpointError):
        TorchBinFormat().open([tmp_path / "raw.bin"])
    assert not Evil.ran


def test_damaged_torch_checkpoints(tmp_path):
    path = tmp_path / "m.bin"
    torch.save({"a": torch.ones(1000)}, path)
    whole = path.read_bytes()
    for content in (b"", b"PK\x03\x04", whole[:200], whole[:-100], b"nonsense"):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"m\.bin"):
            TorchBinFormat().open([path])
    for wrong in ([torch.ones(1)], {"a": {"b": torch.ones(1)}}, {1: torch.ones(1)}):
        torch.save(wrong, path)
        with pytest.raises(CheckpointError, match="no plain mapping"):
            TorchBinFormat().open([path])
