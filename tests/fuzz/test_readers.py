"""Damaged weight files are read or refused: never a crash, a hang or memory beyond their size."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tramontane.errors import CheckpointError, TramontaneError

from . import corpus  # noqa: TID252
from . import run as fuzz_run  # noqa: TID252
from .cases import damaged, limited, run  # noqa: TID252
from .readers import (  # noqa: TID252
    _HYBRID,
    _LATENT,
    _LLAMA,
    READERS,
    Reader,
    Sample,
    _write_gguf,
    read_matrix,
    read_safetensors,
    refusals,
)

CASES = {"gguf": 60, "gguf-model": 25, "ggml": 40, "uqff": 60, "imatrix": 120, "safetensors": 120}
"""Files a reader; together they take few seconds. `run.py` goes on from there."""


@pytest.mark.parametrize("reader", READERS)
def test_damaged_files_are_read_or_refused(reader: str, tmp_path: Path) -> None:
    samples = READERS[reader].samples(tmp_path)
    for sample in samples:
        assert run(reader, sample, sample.data, -1, tmp_path) is None
        assert not refusals, f"{sample.name} is a valid file"
    for seed in range(CASES[reader]):
        sample, data = damaged(samples, seed)
        finding = run(reader, sample, data, seed, tmp_path)
        assert finding is None, f"seed {seed}: {finding and finding.problem}"


@pytest.mark.parametrize("reader", READERS)
def test_what_fuzzing_has_kept_is_read_or_refused(reader: str, tmp_path: Path) -> None:
    samples = READERS[reader].samples(tmp_path)
    kept = corpus.load(reader, samples)
    assert kept
    for sample in kept:
        finding = run(reader, sample, sample.data, -1, tmp_path)
        assert finding is None, finding and finding.problem
        assert refusals, f"{sample.name} was refused when it was kept"


def believes_counts(path: Path) -> None:
    """A reader as none should be: it makes room for what the file says it holds."""
    count = int.from_bytes(path.read_bytes()[:8], "little")
    try:
        torch.empty(count, dtype=torch.uint8)
    except RuntimeError as cause:
        raise CheckpointError(f"{path} is damaged") from cause


def fails_otherwise(path: Path) -> None:
    raise IndexError(path.name)


def test_greedy_and_failing_readers_are_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = Sample("made up", "model.bin", struct.pack("<Q", 1 << 10), 8)
    wrong = struct.pack("<Q", 1 << 30)  # more than other tests may have left free
    for read, data, expected in (
        (believes_counts, sample.data, None),
        (believes_counts, wrong, "memory beyond the size of the file"),
        (lambda path: bytes(6 << 20), wrong, "bytes of memory for a file of 8"),
        (fails_otherwise, wrong, "IndexError: model.bin"),
    ):
        monkeypatch.setitem(READERS, "made up", Reader(lambda directory: [sample], read))
        finding = run("made up", sample, data, 0, tmp_path)
        if expected is None:
            assert finding is None
        else:
            assert finding is not None
            assert expected in finding.problem


def test_a_process_that_cannot_begin_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "python"
    broken.write_text(f"#!/bin/sh\necho x >> {tmp_path}/starts\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    assert fuzz_run.main(["--seconds", "60", "--reader", "ggml"]) == 1
    assert (tmp_path / "starts").read_text() == "x\n"
    assert "before it read a file" in capsys.readouterr().out


# What fuzzing and reading have found -------------------------------------------------------------


@pytest.mark.parametrize(
    ("arch", "more"), [("llama", {}), ("deepseek2", _LATENT), ("granitehybrid", _HYBRID)]
)
@pytest.mark.parametrize("layers", [0, 1_000, 0xFFFF_FFFF])
def test_no_more_layers_are_believed_in_than_tensors_could_fill(
    arch: str, more: dict[str, Any], layers: int, tmp_path: Path
) -> None:
    tensors = {"token_embd.weight": np.ones((9, 32), np.float32)}
    keys = {**_LLAMA, **more, "block_count": layers, "attention.head_count_kv": 1}
    path = tmp_path / "model.gguf"
    _write_gguf(path, arch, keys, tensors, vocabulary="gpt2")
    with limited(), pytest.raises(CheckpointError, match=r"block_count (makes|must be)"):
        _opened(path).config()


@pytest.mark.parametrize("base", [0.0, -1.0])
def test_rotary_frequencies_need_a_base_above_zero(base: float, tmp_path: Path) -> None:
    freqs = {"rope_freqs.weight": np.linspace(1, 8, 8, dtype=np.float32)}
    tensors = {"token_embd.weight": np.ones((9, 32), np.float32), **freqs}
    path = tmp_path / "model.gguf"
    _write_gguf(path, "llama", {**_LLAMA, "rope.freq_base": base}, tensors, vocabulary="gpt2")
    with pytest.raises(CheckpointError, match="freq_base must be above zero"):
        _opened(path).config()


def test_piece_types_that_are_no_whole_numbers(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    sample = _write_gguf(
        path, "llama", _LLAMA, {"output_norm.weight": np.ones(32, np.float32)}, vocabulary="gpt2"
    )
    key = b"tokenizer.ggml.token_type"
    at = sample.data.index(key) + len(key) + 4
    data = bytearray(sample.data)
    data[at : at + 4] = struct.pack("<I", 6)  # float32 in place of int32
    data[at + 12 : at + 16] = struct.pack("<f", float("nan"))
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="token_type must be an array of whole numbers"):
        _opened(path).tokenizer()


@pytest.mark.parametrize(
    ("key", "value"), [("imatrix.datasets", 3), ("imatrix.chunk_count", "three")]
)
def test_an_importance_matrix_with_settings_of_another_kind(
    key: str, value: Any, tmp_path: Path
) -> None:
    import gguf

    path = tmp_path / "imatrix.gguf"
    writer = gguf.GGUFWriter(str(path), "")
    writer.kv_data[0].clear()
    writer.add_string("general.type", "imatrix")
    (writer.add_string if isinstance(value, str) else writer.add_uint32)(key, value)
    writer.add_tensor("blk.0.attn_q.weight.in_sum2", np.ones((1, 32), np.float32))
    writer.add_tensor("blk.0.attn_q.weight.counts", np.ones((1, 1), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match=f"{key} must be"):
        read_matrix(path)


@pytest.mark.parametrize(
    "shape", [[0, 2**62, 2**62], [2**62] * 100_000, [1] * 1_000], ids=["empty", "vast", "long"]
)
def test_shapes_that_no_tensor_can_have(shape: list[int], tmp_path: Path) -> None:
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}
    header = json.dumps({"a": entry}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with limited(), pytest.raises(TramontaneError, match=r"'a'.* shape"):
        read_safetensors(path)


def _opened(path: Path) -> Any:
    from tramontane_gguf.checkpoint import GgufFormat

    return GgufFormat().open([path])
