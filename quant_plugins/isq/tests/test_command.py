"""``tramontane quantize``."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from tramontane.errors import CheckpointError, ConfigError, MissingPluginError, ValidationError
from tramontane.hooks import plugin_manager
from tramontane_isq.command import calibrate, progress, quantize
from tramontane_isq.imatrix import gguf_names, read_imatrix, write_cimatrix
from tramontane_testkit.models import tiny_llama

WIDE = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 4}


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("wide") / "model", **WIDE)


def test_the_command_is_there(wide: Path, tmp_path: Path) -> None:
    main = pytest.importorskip("tramontane_cli.main", reason="tramontane-cli is not installed")
    arguments = ["quantize", "-m", str(wide), "-o", str(tmp_path / "m.gguf"), "-t", "Q4_K_M"]
    result = CliRunner().invoke(main.app, arguments)
    assert result.exit_code == 0
    assert (tmp_path / "m.gguf").stat().st_size > 100_000


def test_an_importance_matrix_changes_what_it_knows(wide: Path, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    values = {"model.layers.0.self_attn.q_proj": torch.rand(256) + 0.01}
    write_cimatrix(tmp_path / "m.cimatrix", values)
    quantize(str(wide), tmp_path / "plain.gguf", "Q4_K_S")
    quantize(str(wide), tmp_path / "weighted.gguf", "Q4_K_S", imatrix=tmp_path / "m.cimatrix")
    plain, weighted = (
        {t.name: t.data for t in gguf.GGUFReader(tmp_path / f"{n}.gguf").tensors}
        for n in ("plain", "weighted")
    )
    differing = {name for name in plain if (plain[name] != weighted[name]).any()}
    assert differing == {"blk.0.attn_q.weight"}


def test_a_file_may_be_the_model(wide: Path, tmp_path: Path) -> None:
    quantize(str(wide), tmp_path / "f16.gguf", "F16")
    quantize(str(tmp_path / "f16.gguf"), tmp_path / "q8.gguf", "Q8_0")
    assert (tmp_path / "q8.gguf").stat().st_size < (tmp_path / "f16.gguf").stat().st_size


def test_what_is_refused(wide: Path, tmp_path: Path) -> None:
    target = tmp_path / "m.gguf"
    with pytest.raises(MissingPluginError, match="xyz"):
        quantize(str(wide), tmp_path / "m.xyz", "Q8_0")
    with pytest.raises(ValidationError, match="is no directory"):
        quantize(str(wide), tmp_path / "absent" / "m.gguf", "Q8_0")
    target.write_bytes(b"old")
    with pytest.raises(ValidationError, match="--force"):
        quantize(str(wide), target, "Q8_0")
    matrix = tmp_path / "m.cimatrix"
    write_cimatrix(matrix, {"model.layers.7.self_attn.q_proj": torch.ones(256)})
    with pytest.raises(ConfigError, match="knows no tensor of this model"):
        quantize(str(wide), target, "Q4_K_S", imatrix=matrix, force=True)
    write_cimatrix(matrix, {"model.layers.0.self_attn.q_proj": torch.ones(32)})
    with pytest.raises(ConfigError, match="do not fit"):
        quantize(str(wide), target, "Q4_K_S", imatrix=matrix, force=True)
    matrix.write_bytes(b"\x01" + b"\0" * 16)
    with pytest.raises(CheckpointError):
        quantize(str(wide), target, "Q4_K_S", imatrix=matrix, force=True)
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir() if "part" in p.name] == []


def test_statistics_are_written_in_both_forms(wide: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("The quick brown fox. " * 8, "utf-8")
    files = [tmp_path / "m.cimatrix", tmp_path / "m.gguf"]
    for file in files:
        calibrate(str(wide), file, tmp_path / "text.txt")
    ours, theirs = (read_imatrix(file, plugin_manager()).values for file in files)
    assert len(ours) == len(theirs) == 15
    for name, values in ours.items():
        assert torch.allclose(theirs[gguf_names(name)[0]], values)
    quantize(str(wide), tmp_path / "out.gguf", "Q3_K_M", imatrix=files[1])
    with pytest.raises(ValidationError, match="--force"):
        calibrate(str(wide), files[0], tmp_path / "text.txt")
    with pytest.raises(ValidationError, match=r"must end in \.cimatrix or \.gguf"):
        calibrate(str(wide), tmp_path / "m.dat", tmp_path / "text.txt")


def test_the_bar_is_for_people(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with progress() as silent:
        assert silent is None
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with progress() as bar:
        assert bar is not None
        bar(2048, 4096, "blk.0.[attn_q]")
    assert "2.0/4.1 kB" in (shown := capsys.readouterr().err)
    assert "blk.0.[attn_q]" in shown
