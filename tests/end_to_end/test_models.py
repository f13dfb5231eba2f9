"""The runner's models: names, states, closing."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

import tramontane
from tramontane import (
    ChatCompletionRequest,
    EngineClosedError,
    MissingPluginError,
    ModelKindError,
    ModelNotFoundError,
    Runner,
    UnsupportedError,
    ValidationError,
    Which,
)

REQUEST = ChatCompletionRequest(messages="Hi", max_tokens=4, temperature=0.0)


@pytest.fixture
def own(model_dir: Path) -> Runner:
    return Runner(which=Which.Plain(model_id=str(model_dir)))


def test_names_and_states(own: Runner, model_dir: Path) -> None:
    name = str(model_dir)
    assert own.list_models() == [name]
    assert own.get_default_model_id() == name
    assert own.list_models_with_status() == [(name, "loaded")]
    assert own.get_model_status("absent") is None
    own.unload_model(name)
    assert not own.is_model_loaded(name)
    assert own.list_unloaded_models() == [name]
    with pytest.raises(ValidationError, match="not loaded"):
        own.unload_model(name)
    with pytest.raises(ValidationError, match="unloaded"):
        own.max_sequence_length()
    own.reload_model(name)
    assert own.is_model_loaded(name)
    with pytest.raises(ValidationError, match="loaded already"):
        own.reload_model(name)
    with pytest.raises(ValidationError, match="last model"):
        own.remove_model(name)
    own.close()


def test_a_request_reloads_an_unloaded_model_once(own: Runner, model_dir: Path) -> None:
    own.unload_model(str(model_dir))
    answers = []

    def ask() -> None:
        answers.append(own.send_chat_completion_request(REQUEST, model_id=str(model_dir)))

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({a.choices[0].message.content for a in answers}) == 1
    assert len(answers) == 6
    own.close()


def test_an_unload_waits_for_running_requests(own: Runner, model_dir: Path) -> None:
    long = ChatCompletionRequest(
        messages="Hi", max_tokens=150, temperature=0.0, ignore_eos=True, stream=True
    )
    stream = own.send_chat_completion_request(long)
    own.unload_model(str(model_dir))
    assert list(stream)[-1].choices[0].finish_reason == "length"
    own.close()


def test_closing_ends_what_is_running(own: Runner) -> None:
    long = ChatCompletionRequest(
        messages="Hi", max_tokens=200, temperature=0.0, ignore_eos=True, stream=True
    )
    stream = own.send_chat_completion_request(long)
    next(stream)
    own.close()
    own.close()
    with pytest.raises(EngineClosedError):
        for _ in stream:
            pass
    with pytest.raises(EngineClosedError, match="closed"):
        own.send_chat_completion_request(REQUEST)


def test_an_unknown_model_lists_the_known(runner: Runner, model_dir: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=model_dir.name):
        runner.send_chat_completion_request(REQUEST, model_id="nobody/nothing")


def test_a_strange_name_in_the_request_itself_means_the_default(runner: Runner) -> None:
    named = ChatCompletionRequest(messages="Hi", model="gpt-4", max_tokens=2)
    assert runner.send_chat_completion_request(named).choices


def test_the_wrong_kind_of_request_names_the_right_one(runner: Runner) -> None:
    with pytest.raises(ModelKindError, match="send_chat_completion_request"):
        runner.send_embedding_request({"input": "x"})
    with pytest.raises(ModelKindError, match="text model"):
        runner.generate_image("a house", "url")
    with pytest.raises(ModelKindError):
        runner.generate_audio("hello")


@pytest.mark.parametrize(
    ("which", "extra"),
    [
        (Which.VisionPlain("x/y", "Gemma3"), "tramontane-vision"),
        (Which.DiffusionPlain("x/y", "Flux"), "tramontane-flux"),
        (Which.Speech("x/y", "Dia"), "tramontane-dia"),
        (Which.Lora("x/y"), "tramontane-lora"),
        (Which.XLora("x/y", "order.json"), "tramontane-xlora"),
        (Which.LoraGGUF("x/y", "f.gguf", "a", "order.json"), "tramontane-lora"),
        (Which.LoraGGML("x/y", "f.bin", "a", "order.json"), "tramontane-lora"),
        (Which.XLoraGGML("x/y", "f.bin", "a", "order.json"), "tramontane-xlora"),
    ],
)
def test_what_a_plug_in_would_serve_names_it(which: object, extra: str) -> None:
    with pytest.raises(MissingPluginError, match=extra):
        Runner(which=which)


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"which_draft": Which.Plain("x/y")}, "speculative"),
        ({"enable_search": True}, "web search"),
    ],
)
def test_settings_nothing_can_honour_are_refused(
    settings: dict[str, object], what: str, model_dir: Path
) -> None:
    with pytest.raises((MissingPluginError, UnsupportedError), match=what):
        Runner(which=Which.Plain(model_id=str(model_dir)), **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"max_seqs": 0},
        {"prefix_cache_n": -1},
        {"pa_gpu_mem_usage": 1.5},
        {"pa_blk_size": 7},
        {"paged_attn": True, "no_paged_attn": True},
        {"token_source": "keychain"},
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, object], model_dir: Path) -> None:
    with pytest.raises(tramontane.TramontaneError):
        Runner(which=Which.Plain(model_id=str(model_dir)), **settings)


def test_selecting_nothing_says_what_to_pass() -> None:
    with pytest.raises(ValidationError, match=r"Which\.Plain"):
        Runner()
    with pytest.raises(ValidationError, match="Which variant"):
        Runner(which="some/model")
