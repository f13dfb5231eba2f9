"""``plugins``, ``doctor`` and the frame around all commands."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata

import pytest
import typer

from tramontane.hooks import PluginManager, hookimpl
from tramontane_cli import checks
from tramontane_cli.terminal import printable, table


class Broken:
    """A plug-in whose hook fails."""

    @hookimpl
    def tramontane_architectures(self):
        raise ImportError("libnothing.so is missing")


@pytest.fixture
def one_refused(monkeypatch) -> PluginManager:
    """A process whose plug-ins are core's own and one that was refused."""
    manager = PluginManager(discover=False, strict=False)
    from tramontane.hooks.candidates import given

    manager._add(given(Broken()), strict=False)
    monkeypatch.setattr("tramontane.hooks.plugin_manager", lambda: manager)
    return manager


def test_plugins_lists_what_is_in_use_and_what_was_refused(cli, one_refused):
    result = cli("plugins")
    assert result.exit_code == 0
    lines = [line.split("\t") for line in result.stdout.splitlines()]
    assert lines[0] == ["plug-in", "distribution", "version", "provides"]
    assert ["loading", "tramontane"] in [line[:2] for line in lines]
    assert lines[-1][-1] == "ImportError: libnothing.so is missing"


def test_plugins_as_json(cli, one_refused):
    data = json.loads(cli("plugins", "--json").stdout)
    loading = next(entry for entry in data["plugins"] if entry["name"] == "loading")
    assert loading["version"] == metadata.version("tramontane")
    assert "safetensors" in loading["provides"]["checkpoint_formats"]
    assert "tramontane_checkpoint_formats" in loading["hooks"]
    (failure,) = data["failures"]
    assert (failure["name"], failure["cause"]) == (
        "Broken",
        "ImportError: libnothing.so is missing",
    )


@pytest.fixture
def offline(monkeypatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.mark.usefixtures("offline")
def test_doctor_finds_this_installation_in_order(cli):
    result = cli("doctor", "--json")
    data = json.loads(result.stdout)
    topics = [finding["topic"] for finding in data["findings"]]
    for topic in ("Python", "tramontane", "torch", "CPU", "memory", "model cache", "hub"):
        assert topic in topics
    assert data["healthy"] is (result.exit_code == 0)
    broken = [f for f in data["findings"] if f["status"] == "fail"]
    assert data["healthy"] is not bool(broken)
    assert all(f["mend"] for f in broken)


def test_doctor_fails_when_something_is_broken(cli, monkeypatch):
    finding = checks.Finding("torch", "fail", "not there", "pip install torch")
    monkeypatch.setattr(checks, "examine", lambda: [finding])
    result = cli("doctor")
    assert result.exit_code == 1
    assert "FAIL  torch: not there" in result.stdout
    assert "pip install torch" in result.stdout


def test_a_check_that_breaks_becomes_a_finding(monkeypatch):
    def memory():
        raise PermissionError("/proc is closed")

    for name in ("python", "distributions", "libraries", "torch_build", "devices", "processor"):
        monkeypatch.setattr(checks, name, list)
    for name in ("kernels", "disk", "hub", "plug_ins"):
        monkeypatch.setattr(checks, name, list)
    monkeypatch.setattr(checks, "memory", memory)
    (finding,) = checks.examine()
    assert (finding.topic, finding.status) == ("memory", "fail")
    assert "PermissionError" in finding.found


def test_a_hub_that_cannot_be_reached_is_worth_a_warning_only(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    (finding,) = checks.hub()
    assert finding.status == "warn"
    assert "HF_HUB_OFFLINE=1" in finding.mend


def test_another_release_line_is_broken(monkeypatch):
    class Dist:
        def __init__(self, name, version):
            self.name, self.version = name, version

    there = [Dist("tramontane", "0.2.1"), Dist("tramontane-llama", "0.1.9"), Dist("torch", "2.9")]
    monkeypatch.setattr(checks.metadata, "distributions", lambda: there)
    core, llama = checks.distributions()
    assert core.status == "ok"
    assert llama.status == "fail"
    assert "pip install --upgrade tramontane tramontane-llama" in llama.mend


def test_doctor_names_a_refused_plugin_even_in_strict_mode(monkeypatch):
    monkeypatch.setenv("TRAMONTANE_STRICT_PLUGINS", "1")
    monkeypatch.setattr("tramontane.hooks.candidates.BUILT_IN", ("module.nowhere",))
    failures = [f for f in checks.plug_ins() if f.status == "fail"]
    assert "module" in failures[0].found
    assert "pip install --upgrade tramontane" in failures[0].mend


def test_version_and_help(cli):
    assert cli("--version").stdout == f"tramontane {metadata.version('tramontane')}\n"
    for args in (["--help"], ["run", "-h"], ["plugins", "--help"], ["doctor", "--help"]):
        result = cli(*args)
        assert result.exit_code == 0
        assert "Usage" in result.stdout
    assert cli("runn").exit_code == 2


def test_help_imports_nothing_heavy():
    code = (
        "import sys\n"
        "from tramontane_cli.main import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'numpy', 'transformers', 'tokenizers', 'huggingface_hub'}\n"
        "print(heavy & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip().splitlines()[-1] == "set()"


def test_a_plugin_adds_a_command(cli, monkeypatch):
    class Guest:
        @hookimpl
        def tramontane_commands(self, cli):
            @cli.command()
            def wave(name: str) -> None:
                """Say hello."""
                typer.echo(f"hello {name}")

            @cli.command("run")
            def other() -> None:
                raise AssertionError

    manager = PluginManager([Guest()], discover=False, strict=False)
    monkeypatch.setattr("tramontane.hooks.plugin_manager", lambda: manager)
    assert cli("wave", "you").stdout == "hello you\n"
    listing = cli("--help").stdout
    assert "Say hello." in listing
    assert "Ask a model" in listing


def test_text_of_a_model_cannot_steer_the_terminal():
    assert printable("a\x1b[2Jb\x07\r\nc\td\x9b31m é 🌬") == "a[2Jb\nc\td31m é 🌬"


def test_a_table_for_programs_has_one_line_a_row(capsys):
    table(("a", "b"), [("1\t1", "2\n2")])
    assert capsys.readouterr().out == "a\tb\n1 1\t2 2\n"
