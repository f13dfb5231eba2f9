"""A bad plug-in is refused alone, with its distribution, version and cause on record."""

from __future__ import annotations

import logging

import pytest

from tramontane.errors import MissingPluginError, PluginConflictError, PluginError
from tramontane.hooks import PluginFailure, PluginManager


@pytest.fixture(autouse=True)
def lenient(monkeypatch: pytest.MonkeyPatch) -> None:
    """CI runs with strict plug-ins; here the recording is what is tested."""
    monkeypatch.delenv("TRAMONTANE_STRICT_PLUGINS", raising=False)


def refusal(manager: PluginManager, distribution: str) -> PluginFailure:
    """The one failure of a distribution, none of whose plug-ins may be in use."""
    assert distribution not in {info.distribution for info in manager.plugins()}
    found = [failure for failure in manager.failures() if failure.distribution == distribution]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("import module_that_is_nowhere", ModuleNotFoundError),
        ("raise SystemExit(3)", SystemExit),
        ("def broken(:", SyntaxError),
        ("1 / 0", ZeroDivisionError),
        ("@hookimpl\ndef tramontane_architectures():\n    raise KeyError('late')", KeyError),
    ],
)
def test_a_broken_plugin_leaves_the_others_alone(install, one_architecture, source, cause):
    install("broken", "2.3.4", source)
    install("working", "1.0", one_architecture("Zephyr"))
    manager = PluginManager()
    failure = refusal(manager, "broken")
    assert (failure.name, failure.version) == ("broken", "2.3.4")
    assert isinstance(failure.cause, cause)
    assert manager.architecture("zephyr").name == "Zephyr"


def test_a_refusal_is_logged_once(install, caplog):
    install("broken", "1.0", "import module_that_is_nowhere")
    with caplog.at_level(logging.WARNING, "tramontane.hooks"):
        manager = PluginManager()
        manager.plugins()
        manager.find("architectures", "Zephyr")
    lines = [record.getMessage() for record in caplog.records if "broken" in record.getMessage()]
    assert len(lines) == 1
    assert "module_that_is_nowhere" in lines[0]


def test_the_cause_is_chained_when_somebody_asks_for_what_is_missing(install):
    install("broken", "1.0", "import module_that_is_nowhere")
    with pytest.raises(MissingPluginError, match=r"broken .*1\.0") as caught:
        PluginManager().architecture("Zephyr")
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


@pytest.mark.parametrize(
    "second",
    [
        {"name": "Zephyr"},
        {"name": "ZEPHYR"},
        {"name": "Other", "hf_names": ("zephyr",)},
        {"name": "Other", "hf_names": ("BreezeForCausalLM",)},
        {"name": "Other", "gguf_names": ("breeze",)},
    ],
    ids=repr,
)
def test_two_claims_to_one_name_name_both_distributions(install, one_architecture, second):
    install(
        "alpha",
        "1.0",
        one_architecture("Zephyr", hf_names=("BreezeForCausalLM",), gguf_names=("breeze",)),
    )
    install("beta", "2.0", one_architecture(**second))
    manager = PluginManager()
    failure = refusal(manager, "beta")
    assert isinstance(failure.cause, PluginConflictError)
    assert "alpha 1.0" in str(failure.cause)
    assert "beta 2.0" in str(failure.cause)
    assert manager.owner(manager.architecture("Zephyr")).distribution == "alpha"


def test_a_refused_plugin_leaves_none_of_its_specs_behind(install):
    install(
        "half",
        "1.0",
        """
        @hookimpl
        def tramontane_architectures():
            return [
                ArchitectureSpec(name="Good", target="nowhere:Model"),
                ArchitectureSpec(name="Bad", target="nowhere:Model", api_version=99),
            ]
        """,
    )
    manager = PluginManager()
    refusal(manager, "half")
    assert manager.find("architectures", "Good") is None


def test_a_misspelt_hook_is_refused_with_the_right_name(install):
    install("typo", "1.0", "@hookimpl\ndef tramontane_architecture():\n    return []")
    failure = refusal(PluginManager(), "typo")
    assert "did you mean tramontane_architectures" in str(failure.cause)


def test_a_hook_without_its_decorator_is_refused(install):
    install("bare", "1.0", "def tramontane_architectures():\n    return []")
    assert "hookimpl" in str(refusal(PluginManager(), "bare").cause)


def test_a_hook_that_wants_what_is_not_offered_is_refused(install):
    install("greedy", "1.0", "@hookimpl\ndef tramontane_architectures(weather):\n    return []")
    assert "weather" in str(refusal(PluginManager(), "greedy").cause)


def test_another_contract_version_is_refused(install, one_architecture):
    install("old", "0.9", one_architecture("Ancient", api_version=0))
    cause = refusal(PluginManager(), "old").cause
    assert isinstance(cause, PluginError)
    assert "version 0" in str(cause)
    assert "install a matching old" in str(cause)


def test_a_spec_of_the_wrong_kind_is_refused(install):
    install(
        "mixed",
        "1.0",
        """
        @hookimpl
        def tramontane_architectures():
            return [PipelineSpec(name="x", target="nowhere:X", kind="text")]
        """,
    )
    assert "ArchitectureSpec" in str(refusal(PluginManager(), "mixed").cause)


def test_a_malformed_target_is_refused(install):
    install(
        "vague",
        "1.0",
        """
        @hookimpl
        def tramontane_architectures():
            return [ArchitectureSpec(name="x", target="module.Class")]
        """,
    )
    assert "module:Name" in str(refusal(PluginManager(), "vague").cause)


def test_a_target_that_is_nowhere_names_its_plugin(install, one_architecture):
    install("hollow", "3.1", one_architecture("Hollow"))
    manager = PluginManager()
    with pytest.raises(PluginError, match=r"nowhere:Model of hollow 3\.1"):
        manager.resolve(manager.architecture("Hollow"))


def test_strict_raises_the_first_failure(install, monkeypatch):
    install("broken", "1.0", "import module_that_is_nowhere")
    monkeypatch.setenv("TRAMONTANE_STRICT_PLUGINS", "1")
    with pytest.raises(PluginError, match=r"broken \(broken 1\.0\)"):
        PluginManager()
    monkeypatch.setenv("TRAMONTANE_STRICT_PLUGINS", "0")
    refusal(PluginManager(), "broken")


def test_an_observer_that_fails_does_not_stop_the_others(install):
    calls: list[str] = []
    install("angry", "1.0", "@hookimpl\ndef tramontane_model_loaded(info):\n    1 / 0")
    install(
        "calm",
        "1.0",
        "@hookimpl\ndef tramontane_model_loaded(info):\n    info['calls'].append('calm')",
    )
    PluginManager().model_loaded({"model_id": "m", "calls": calls})
    assert calls == ["calm"]
