"""Files that are damaged, incomplete or from the future are refused by file and tensor."""

from __future__ import annotations

import contextlib
import json
import shutil
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tramontane import Runner, Which
from tramontane.errors import (
    CheckpointError,
    MissingPluginError,
    SourceError,
    TramontaneError,
)
from tramontane.hooks import PluginManager
from tramontane.loading.loader import LoadRequest, load_text
from tramontane.protocols import InSituSettings
from tramontane_uqff.blobs import read_blob
from tramontane_uqff.checkpoint import UqffCheckpoint, UqffFormat

from .gen0 import gguf_blob, plain_blob, tensor  # noqa: TID252

KEY = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="session")
def made(narrow: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    @cache
    def make(kind: str) -> Path:
        path = tmp_path_factory.mktemp("made") / kind / "x.uqff"
        settings = InSituSettings(type_name=kind)
        format = UqffFormat()
        load_text(
            LoadRequest(
                model_id=str(narrow),
                in_situ=settings,
                save=lambda bound: format.save(bound, path, kind),
            )
        )
        return path.parent

    return make


@pytest.fixture
def written(
    made: Callable[[str], Path], tmp_path: Path
) -> Callable[[str], tuple[Path, dict[str, Any]]]:
    def write(kind: str) -> tuple[Path, dict[str, Any]]:
        directory = shutil.copytree(made(kind), tmp_path / "out")
        return directory, load_file(directory / "x-0.uqff")

    return write


def opened(directory: Path) -> None:
    checkpoint = UqffFormat().open([directory / "x-0.uqff"])
    for name in checkpoint.names():
        checkpoint.tensor(name)


def number(value: int, dtype: torch.dtype = torch.uint32) -> torch.Tensor:
    return torch.tensor(value, dtype=dtype)


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("Q8_0", {"uqff.version.minor": number(3)}, ["1.3.0", "newer"]),
        ("Q8_0", {"uqff.version.major": number(2)}, ["2.2.0"]),
        ("Q8_0", {"uqff.version.patch": None}, ["uqff.version.patch"]),
        ("Q8_0", {f"{KEY}.format": number(9, torch.uint8)}, [f"{KEY}.format", "is 9"]),
        ("Q8_0", {f"{KEY}.format": number(4, torch.uint8)}, [KEY, "AFQ", "scales"]),
        ("Q8_0", {f"{KEY}.shape": None}, [f"{KEY}.shape", "missing"]),
        ("Q8_0", {f"{KEY}.shape": torch.tensor([256, 512], dtype=torch.uint32)}, [KEY]),
        ("Q8_0", {f"{KEY}.shape": torch.tensor([0, 0], dtype=torch.uint32)}, [KEY, "[0, 0]"]),
        ("Q8_0", {f"{KEY}.dtype": number(77)}, [KEY, "77"]),
        ("Q8_0", {f"{KEY}.dtype": number(8, torch.uint8)}, [f"{KEY}.dtype", "uint32"]),
        ("Q8_0", {KEY: torch.zeros(9)}, [KEY, "float32", "uint8"]),
        ("Q8_0", {KEY: torch.zeros(9, dtype=torch.uint8)}, [KEY, "9"]),
        ("Q8_0", {f"{KEY}.zeros": torch.zeros(1)}, [f"{KEY}.zeros", "no weight"]),
        ("AFQ4", {f"{KEY}.scales": torch.zeros(3, 4)}, [KEY]),
        ("AFQ4", {f"{KEY}.bits": number(9, torch.uint8)}, [KEY]),
        ("AFQ4", {f"{KEY}.group_size": number(0, torch.uint8)}, [KEY]),
        ("HQQ8", {f"{KEY}.axis": number(7, torch.uint8)}, [KEY]),
        ("HQQ8", {f"{KEY}.group_size": number(0)}, [KEY]),
        ("HQQ8", {f"{KEY}.zeros": torch.zeros(1, 2)}, [KEY]),
        ("FP8", {f"{KEY}.dequant_w_scale": torch.ones(2)}, [f"{KEY}.dequant_w_scale"]),
        ("MXFP4", {f"{KEY}.scales": torch.zeros(2, 2, dtype=torch.uint8)}, [KEY]),
        ("F8Q8", {f"{KEY}.num_blocks": number(1)}, [KEY, "num_blocks"]),
    ],
)
def test_what_is_wrong_is_named(
    kind: str,
    change: dict[str, Any],
    words: list[str],
    written: Callable[[str], tuple[Path, dict[str, Any]]],
) -> None:
    directory, tensors = written(kind)
    opened(directory)
    changed = {k: v for k, v in {**tensors, **change}.items() if v is not None}
    save_file(changed, directory / "x-0.uqff")
    with pytest.raises(CheckpointError) as caught:
        opened(directory)
    for word in ("x-0.uqff", *words):
        assert word in str(caught.value), caught.value


def test_files_that_do_not_belong_together(
    written: Callable[[str], tuple[Path, dict[str, Any]]],
) -> None:
    directory, tensors = written("Q8_0")
    residual = directory / "residual.safetensors"
    content = residual.read_bytes()
    save_file({KEY: torch.zeros(2, 2)}, residual)
    with pytest.raises(CheckpointError, match=r"is in .*x-0\.uqff and in .*residual"):
        opened(directory)
    residual.unlink()
    with pytest.raises(CheckpointError, match=r"residual\.safetensors is missing"):
        opened(directory)
    residual.write_bytes(content)
    save_file(tensors, directory / "x-1.uqff")
    files = [directory / "x-0.uqff", directory / "x-1.uqff"]
    with pytest.raises(CheckpointError, match="do not belong together"):
        UqffFormat().open(files)
    files[1].rename(directory / "x-2.uqff")
    (directory / "uqff_report.json").unlink()
    with pytest.raises(CheckpointError, match=r"but not x-1\.uqff"):
        Runner(Which.Plain(str(directory), from_uqff="x-0.uqff"))
    files[0].write_bytes(files[0].read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=r"x-0\.uqff.*truncated"):
        opened(directory)


def test_names_and_reports_that_lead_nowhere(
    written: Callable[[str], tuple[Path, dict[str, Any]]],
) -> None:
    directory, _ = written("Q8_0")
    with pytest.raises(SourceError, match=r"'Q4K'; it has x-0\.uqff, of types q8_0"):
        Runner(Which.Plain(str(directory), from_uqff="Q4K"))
    report = directory / "uqff_report.json"
    data = json.loads(report.read_text())
    for change, message in (
        ({"outputs": []}, "no outputs"),
        ({"outputs": data["outputs"] * 2}, "twice"),
        ({"outputs": [{"quant": "q8_0", "shards": ["../x-0.uqff"]}]}, "no file beside it"),
        ({"outputs": [{"quant": "q8_0", "shards": ["y-0.uqff"]}]}, "lacks y-0.uqff"),
        ({"outputs": [{"quant": 8}]}, "lacks quant"),
    ):
        report.write_text(json.dumps(data | change))
        with pytest.raises(CheckpointError, match=message):
            Runner(Which.Plain(str(directory), from_uqff="Q8_0"))


def test_a_format_that_is_not_installed_is_named(
    written: Callable[[str], tuple[Path, dict[str, Any]]],
) -> None:
    directory, _ = written("AFQ4")
    checkpoint = UqffCheckpoint(
        [directory / "x-0.uqff"], directory / "residual.safetensors", NoAfq()
    )
    with pytest.raises(MissingPluginError, match="afq"):
        checkpoint.tensor(KEY)


class NoAfq(PluginManager):
    """The plug-ins of this process without one."""

    def find(self, kind: str, name: str) -> Any | None:
        return None if name == "afq" else super().find(kind, name)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_no_blob_whatever_does_more_than_be_refused(data: st.DataObject) -> None:
    blocks = torch.arange(68, dtype=torch.uint8)
    scales, bias = torch.ones(2, 1), torch.ones(2)
    blob = data.draw(
        st.sampled_from(
            [
                gguf_blob({"data": blocks, "dtype": 8, "shape": (2, 32)}, bias),
                plain_blob(torch.ones(2, 32), bias),
                struct.pack("<IBB", 0x200, 4, 0)
                + tensor(torch.zeros(2, 16).to(torch.uint32))
                + tensor(scales)
                + tensor(scales)
                + b"\x08\x40",
            ]
        )
    )
    raw = bytearray(blob)
    for _ in range(data.draw(st.integers(0, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.just(len(raw)), st.integers(0, len(raw))))
    value = torch.tensor(list(raw[:cut]), dtype=torch.uint8)
    with contextlib.suppress(TramontaneError):
        weight, _ = read_blob(value, "blob")
        built = weight.build(PLUGINS)
        assert built.nbytes <= 4 * len(raw)


PLUGINS = PluginManager(())


def test_no_file_whatever_does_more_than_be_refused(
    written: Callable[[str], tuple[Path, dict[str, Any]]],
) -> None:
    directory, _ = written("AFQ4")
    file = directory / "x-0.uqff"
    whole = file.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")

    @settings(max_examples=60, deadline=None)
    @given(st.data())
    def refuse(data: st.DataObject) -> None:
        raw = bytearray(whole)
        for _ in range(data.draw(st.integers(1, 4))):
            # The header, and the small tensors that lie behind it.
            at = data.draw(st.integers(0, min(header + 4000, len(raw) - 1)))
            raw[at] = data.draw(st.integers(0, 255))
        file.write_bytes(raw)
        with contextlib.suppress(TramontaneError):
            opened(directory)

    refuse()
