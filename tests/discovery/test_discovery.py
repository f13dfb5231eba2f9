"""Finding plug-ins: cheap, in a fixed order, and open to modules that are not packaged."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import pytest
import typer

from tramontane.hooks import ArchitectureSpec, PluginManager, hookimpl


def run_python(code: str) -> str:
    """What a fresh interpreter prints for ``code``."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


HEAVY = "{name for name in ('torch', 'transformers', 'tokenizers', 'numpy') if name in sys.modules}"


@pytest.mark.parametrize(
    "code",
    [
        "import tramontane",
        "from tramontane.hooks import plugin_manager; assert plugin_manager().plugins()",
        "from tramontane import Which, ChatCompletionRequest, TramontaneError",
        "import tramontane; dir(tramontane)",
        "from tramontane_cli.main import app",
    ],
)
def test_listing_what_exists_costs_no_torch(code):
    assert run_python(f"import sys; {code}; print({HEAVY})") == "set()"


def test_the_order_is_that_of_distribution_names(install, one_architecture):
    for distribution in ("zulu", "alfa", "mike"):
        install(distribution, "1.0", one_architecture(distribution))
    found = [info.distribution for info in PluginManager().plugins()]
    assert [name for name in found if name in ("alfa", "mike", "zulu")] == ["alfa", "mike", "zulu"]
    assert found[0] == "tramontane"


def test_the_fingerprint_tells_versions_apart(install, one_architecture):
    before = PluginManager().fingerprint()
    install("alfa", "1.5", one_architecture("alfa"))
    after = PluginManager().fingerprint()
    assert set(after) - set(before) == {("alfa", "alfa", "1.5")}
    assert after == PluginManager().fingerprint()


def test_an_unpackaged_module_is_a_plugin_of_one_manager():
    module = ModuleType("my_experiment")

    @hookimpl
    def tramontane_architectures():
        return [ArchitectureSpec(name="Experiment", target="my_experiment:Model")]

    module.tramontane_architectures = tramontane_architectures
    assert PluginManager([module]).architecture("Experiment").name == "Experiment"
    assert PluginManager().find("architectures", "Experiment") is None


def test_a_plugin_adds_a_subcommand(install):
    install(
        "talker",
        "1.0",
        """
        @hookimpl
        def tramontane_commands(cli):
            @cli.command()
            def wave():
                print("hello")
        """,
    )
    app = typer.Typer()
    PluginManager().add_commands(app)
    assert "wave" in typer.main.get_group(app).commands
