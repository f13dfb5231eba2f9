"""The container: what the gguf package writes is read, what is corrupt is refused by name."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tramontane.errors import CheckpointError
from tramontane_gguf.container import read

U32, STRING, ARRAY, BOOL = 4, 8, 9, 7


def text(value: str | bytes, form: str = "<Q") -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack(form, len(raw)) + raw


def key(name: str, kind: int, payload: bytes, form: str = "<Q") -> bytes:
    return text(name, form) + struct.pack("<I", kind) + payload


def row(name: str, dims: list[int], kind: int = 0, offset: int = 0, form: str = "<Q") -> bytes:
    sizes = b"".join(struct.pack(form, dim) for dim in dims)
    return (
        text(name, form)
        + struct.pack("<I", len(dims))
        + sizes
        + struct.pack("<I", kind)
        + struct.pack("<Q", offset)
    )


def container(
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    keys: list[bytes] | None = None,
    rows: list[bytes] | None = None,
    num_keys: int | None = None,
    num_tensors: int | None = None,
    payload: bytes = b"",
    alignment: int = 32,
) -> bytes:
    keys, rows = keys or [], rows or []
    form = "<I" if version == 1 else "<Q"
    head = magic + struct.pack("<I", version)
    head += struct.pack(form, len(rows) if num_tensors is None else num_tensors)
    head += struct.pack(form, len(keys) if num_keys is None else num_keys)
    head += b"".join(keys) + b"".join(rows)
    return head + b"\0" * (-len(head) % alignment) + payload


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


def refused(file: Path, content: bytes, message: str) -> None:
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        read(file)
    assert str(file) in str(caught.value)


def test_what_the_gguf_package_writes(file: Path) -> None:
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_uint8("a.u8", 200)
    writer.add_int8("a.i8", -3)
    writer.add_uint16("a.u16", 60_000)
    writer.add_int16("a.i16", -30_000)
    writer.add_uint32("a.u32", 4_000_000_000)
    writer.add_int32("a.i32", -2_000_000_000)
    writer.add_float32("a.f32", 0.5)
    writer.add_bool("a.yes", True)
    writer.add_string("a.text", "Grüße")
    writer.add_array("a.texts", ["x", "", "日本"])
    writer.add_array("a.ints", [1, 2, 3])
    writer.add_array("a.floats", [0.5, -1.5])
    writer.add_array("a.flags", [True, False])
    writer.add_uint64("a.u64", 2**63)
    writer.add_int64("a.i64", -(2**62))
    writer.add_float64("a.f64", 1e-300)
    plain = np.arange(12, dtype=np.float32).reshape(3, 4)
    packed = gguf.quantize(np.ones((4, 64), np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("plain", plain)
    writer.add_tensor("half", plain.astype(np.float16))
    writer.add_tensor("packed", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    found = read(file)
    wanted = {
        "general.architecture": "llama", "a.u8": 200, "a.i8": -3, "a.u16": 60_000,
        "a.i16": -30_000, "a.u32": 4_000_000_000, "a.i32": -2_000_000_000, "a.f32": 0.5,
        "a.yes": True, "a.text": "Grüße", "a.texts": ["x", "", "日本"], "a.ints": [1, 2, 3],
        "a.floats": [0.5, -1.5], "a.flags": [True, False], "a.u64": 2**63, "a.i64": -(2**62),
        "a.f64": 1e-300,
    }  # fmt: skip
    got: dict[str, Any] = {
        name: value.tolist() if isinstance(value, np.ndarray) else value
        for name, value in found.metadata.items()
    }
    assert got == wanted
    assert found.version == 3
    assert found.tensors["plain"].shape == (3, 4)
    assert found.tensors["packed"].shape == (4, 64)
    assert found.tensors["packed"].type.name == "q8_0"
    raw = found.bytes_of(found.tensors["plain"])
    assert raw.numpy().tobytes() == plain.tobytes()
    assert found.bytes_of(found.tensors["packed"]).numpy().tobytes() == packed.tobytes()


def test_the_file_is_mapped_privately(file: Path) -> None:
    content = container(rows=[row("a", [4])], payload=np.ones(4, np.float32).tobytes())
    file.write_bytes(content)
    found = read(file)
    view = found.bytes_of(found.tensors["a"])
    assert view.data_ptr() == found.data.data_ptr() + found.tensors["a"].offset
    view.zero_()
    assert file.read_bytes() == content


def test_version_1_has_short_counts(file: Path) -> None:
    values = struct.pack("<II3i", 5, 3, 1, 2, 3)
    file.write_bytes(
        container(
            version=1,
            keys=[
                key("k", STRING, text("v", "<I"), "<I"),
                key("n", ARRAY, values, "<I"),
            ],
            rows=[row("t", [2, 3], 0, 0, "<I")],
            payload=bytes(24),
        )
    )
    found = read(file)
    assert found.metadata["k"] == "v"
    assert found.metadata["n"].tolist() == [1, 2, 3]
    assert found.tensors["t"].shape == (3, 2)


def test_nested_arrays_and_other_alignment(file: Path) -> None:
    inner = struct.pack("<IQ2I", U32, 2, 7, 8)
    nested = struct.pack("<IQ", ARRAY, 2) + inner + struct.pack("<IQ", STRING, 1) + text("z")
    file.write_bytes(
        container(
            keys=[
                key("n", ARRAY, nested),
                key("general.alignment", U32, struct.pack("<I", 64)),
            ],
            rows=[row("s", []), row("t", [2], 0, 64)],
            payload=bytes(72),
            alignment=64,
        )
    )
    found = read(file)
    assert found.metadata["n"][0].tolist() == [7, 8]
    assert found.metadata["n"][1] == ["z"]
    assert found.tensors["s"].shape == ()
    assert found.tensors["t"].offset % 64 == 0


# Hostile files --------------------------------------------------------------------------------


def test_absent_and_empty(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be opened"):
        read(tmp_path / "absent.gguf")
    with pytest.raises(CheckpointError, match="cannot be opened"):
        read(tmp_path)
    refused(tmp_path / "empty.gguf", b"", "0 bytes are too few")


def test_wrong_magic(file: Path) -> None:
    refused(file, container(magic=b"GGML"), "begins with b'GGML', not b'GGUF': not GGUF")


def test_unknown_version(file: Path) -> None:
    refused(file, container(version=4), "GGUF version 4 is unknown; known are 1, 2, 3")
    refused(file, container(version=0), "GGUF version 0 is unknown")


def test_big_endian(file: Path) -> None:
    refused(file, b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian")


@pytest.mark.parametrize("length", [8, 12, 20, 30, 40, 60])
def test_truncated_header(file: Path, length: int) -> None:
    whole = container(
        keys=[key("some.key", STRING, text("some value"))],
        rows=[row("tensor", [8])],
        payload=bytes(32),
    )
    refused(file, whole[:length], "ends at|cannot fit")


def test_truncated_data(file: Path) -> None:
    whole = container(rows=[row("w", [64])], payload=bytes(256))
    refused(file, whole[:-1], "tensor w ends at 320, but the file at 319; it is truncated")


@pytest.mark.parametrize("count", [2**32, 2**63, 2**64 - 1])
def test_absurd_counts(file: Path, count: int) -> None:
    refused(file, container(num_tensors=count), "tensors cannot fit")
    refused(file, container(num_keys=count), "number of metadata keys is .* cannot fit")
    huge = struct.pack("<Q", count)
    refused(file, container(keys=[huge + b"k"]), "a metadata key needs")
    refused(file, container(keys=[key("k", STRING, huge)]), "k needs")
    for kind in (0, 12, STRING, ARRAY):
        array = struct.pack("<IQ", kind, count)
        refused(file, container(keys=[key("k", ARRAY, array)]), "length of k is .* cannot fit")


def test_unknown_value_types(file: Path) -> None:
    refused(file, container(keys=[key("k", 13, bytes(8))]), "k has value type 13")
    array = struct.pack("<IQ", 99, 1) + bytes(8)
    refused(file, container(keys=[key("k", ARRAY, array)]), "array of value type 99")


def test_bools_that_are_neither(file: Path) -> None:
    refused(file, container(keys=[key("k", BOOL, b"\x02")]), "bool with value 2")
    array = struct.pack("<IQ", BOOL, 2) + b"\x01\x07"
    refused(file, container(keys=[key("k", ARRAY, array)]), "neither 0 nor 1")


def test_arrays_nested_too_deep(file: Path) -> None:
    deep = struct.pack("<IQ", ARRAY, 1) * 5 + struct.pack("<IQ", U32, 0)
    refused(file, container(keys=[key("k", ARRAY, deep)], payload=bytes(64)), "more than 4 deep")


def test_names_that_are_not_text(file: Path) -> None:
    bad = text(b"\xff\xfe") + struct.pack("<I", U32) + bytes(4)
    refused(file, container(keys=[bad]), "metadata key is not valid UTF-8")
    refused(file, container(keys=[key("k", STRING, text(b"\x80"))]), "k is not valid UTF-8")
    refused(file, container(keys=[key("", U32, bytes(4))]), "key of 0 characters")
    refused(file, container(rows=[row("", [1])], payload=bytes(4)), "a tensor has no name")


def test_names_that_occur_twice(file: Path) -> None:
    once = key("k", U32, bytes(4))
    refused(file, container(keys=[once, once]), "metadata key 'k' occurs twice")
    rows = [row("t", [8]), row("t", [8], 0, 32)]
    refused(file, container(rows=rows, payload=bytes(64)), "tensor 't' occurs twice")


@pytest.mark.parametrize("alignment", [0, 3, 48])
def test_alignment_that_is_no_power_of_two(file: Path, alignment: int) -> None:
    entry = key("general.alignment", U32, struct.pack("<I", alignment))
    refused(file, container(keys=[entry]), f"general.alignment is {alignment}")


def test_alignment_that_is_no_number(file: Path) -> None:
    refused(
        file, container(keys=[key("general.alignment", STRING, text("32"))]), "alignment is '32'"
    )


def test_dimensions(file: Path) -> None:
    payload = bytes(256)
    refused(file, container(rows=[row("t", [1] * 5)], payload=payload), "5 dimensions; at most 4")
    refused(file, container(rows=[row("t", [4, 0])], payload=payload), "empty dimension")
    refused(file, container(rows=[row("t", [33], 2)], payload=payload), "whole q4_0 blocks of 32")
    refused(file, container(rows=[row("t", [2**63, 2**63])], payload=payload), "tensor t ends at")
    refused(file, container(rows=[row("t", [1], 77)], payload=payload), "ggml type 77, .*known are")


def test_offsets(file: Path) -> None:
    payload = bytes(128)
    refused(file, container(rows=[row("t", [8], 0, 2**62)], payload=payload), "tensor t ends at")
    refused(file, container(rows=[row("t", [8], 0, 8)], payload=payload), "not a multiple of 32")
    rows = [row("a", [16]), row("b", [8], 0, 32)]
    refused(file, container(rows=rows, payload=payload), "tensor b overlaps tensor a")


WHOLE = container(
    keys=[
        key("general.architecture", STRING, text("llama")),
        key("general.alignment", U32, struct.pack("<I", 32)),
        key("a.texts", ARRAY, struct.pack("<IQ", STRING, 2) + text("x") + text("yz")),
        key("a.numbers", ARRAY, struct.pack("<IQ3f", 6, 3, 1, 2, 3)),
        key("a.flag", BOOL, b"\x01"),
    ],
    rows=[row("token_embd.weight", [32, 4], 8), row("output_norm.weight", [32], 0, 160)],
    payload=bytes(288),
)


@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    changes=st.lists(
        st.tuples(st.integers(0, len(WHOLE) - 1), st.binary(min_size=1, max_size=8)), max_size=4
    ),
    length=st.one_of(st.just(len(WHOLE)), st.integers(0, len(WHOLE))),
)
def test_a_mutated_file_is_read_or_refused(
    file: Path, changes: list[tuple[int, bytes]], length: int
) -> None:
    content = bytearray(WHOLE)
    for at, patch in changes:
        content[at : at + len(patch)] = patch
    file.write_bytes(bytes(content[:length]))
    try:
        found = read(file)
    except CheckpointError:
        return
    for info in found.tensors.values():
        assert torch.equal(found.bytes_of(info), found.bytes_of(info))
