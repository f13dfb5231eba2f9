"""Several models in one runner: the calls of the SDK's multi-model guide, and what goes beyond."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import mistralrs
from tramontane import (
    ChatCompletionRequest,
    CheckpointError,
    CompletionRequest,
    EmbeddingRequest,
    MemoryPlanError,
    ModelKindError,
    ModelNotFoundError,
    Runner,
    ValidationError,
    Which,
)
from tramontane_testkit.models import tiny_llama

REQUEST = ChatCompletionRequest(messages="Hi", max_tokens=4, temperature=0.0)


@pytest.fixture(scope="module")
def other_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("other") / "other", seed=1)


@pytest.fixture
def pair(model_dir: Path, other_dir: Path) -> Iterator[Runner]:
    models = {
        "one": Which.Plain(model_id=str(model_dir)),
        "two": {"which": Which.Plain(model_id=str(other_dir)), "max_seqs": 2},
    }
    with Runner(models=models, pa_ctxt_len=512) as runner:
        yield runner


def said(runner: Runner, model_id: str | None) -> str:
    answer = runner.send_chat_completion_request(REQUEST, model_id=model_id)
    return answer.choices[0].message.content


# The guide of the SDK ---------------------------------------------------------------------


def test_the_guide_to_one_model_by_its_id(model_dir: Path) -> None:
    model_id = str(model_dir)
    runner = mistralrs.Runner(which=mistralrs.Which.Plain(model_id=model_id))
    assert runner.list_models() == [model_id]
    request = mistralrs.ChatCompletionRequest(
        messages=[{"role": "user", "content": "Hello!"}], max_tokens=10
    )
    named = runner.send_chat_completion_request(request, model_id=model_id)
    unnamed = runner.send_chat_completion_request(request)
    assert named.choices[0].message.content == unnamed.choices[0].message.content
    runner.close()


def test_the_guide_to_managing_models(pair: Runner, model_dir: Path) -> None:
    assert pair.list_models() == ["one", "two"]
    assert pair.get_default_model_id() == "one"
    pair.set_default_model_id("two")
    assert pair.get_default_model_id() == "two"
    seen = {}
    for model_id, status in pair.list_models_with_status():
        seen[model_id] = f"{status}"
    assert seen == {"one": "loaded", "two": "loaded"}

    model_id = str(model_dir)  # the canonical name serves as well as the alias
    assert pair.is_model_loaded(model_id)
    before = said(pair, model_id)
    pair.unload_model(model_id)
    assert not pair.is_model_loaded(model_id)
    assert pair.list_unloaded_models() == ["one"]
    assert pair.get_model_status(model_id) == "unloaded"
    with pytest.raises(ValidationError, match="reload it before"):
        pair.set_default_model_id(model_id)
    pair.reload_model(model_id)
    assert pair.is_model_loaded(model_id)
    pair.unload_model(model_id)
    request = ChatCompletionRequest(
        messages=[{"role": "user", "content": "Hi"}], max_tokens=4, temperature=0.0
    )
    answer = pair.send_chat_completion_request(request, model_id=model_id)
    assert answer.choices[0].message.content == before
    assert pair.get_model_status("one") == "loaded"
    pair.remove_model("one")
    assert pair.list_models_with_status() == [("two", "loaded")]
    with pytest.raises(ModelNotFoundError, match="two"):
        said(pair, "one")


def test_every_request_method_takes_a_model_id(pair: Runner) -> None:
    for name in ("one", "two"):
        pair.unload_model(name)
        completion = CompletionRequest(prompt="Once", max_tokens=3, temperature=0.0)
        assert pair.send_completion_request(completion, model_id=name).choices[0].text
        tokens = pair.tokenize_text("some text", add_special_tokens=True, model_id=name)
        assert pair.detokenize_text(tokens, skip_special_tokens=True, model_id=name) == "some text"
        assert pair.max_sequence_length(model_id=name) == 256
        for call in (
            lambda name=name: pair.send_embedding_request(EmbeddingRequest("x"), model_id=name),
            lambda name=name: pair.generate_image("a house", "url", model_id=name),
            lambda name=name: pair.generate_audio("hello", model_id=name),
        ):
            with pytest.raises(ModelKindError):
                call()


def test_models_answer_side_by_side_from_threads_and_asyncio(pair: Runner) -> None:
    alone = {name: said(pair, name) for name in ("one", "two")}
    assert alone["one"] != alone["two"]
    names = ["one", "two"] * 4
    pair.unload_model("two")
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda name: said(pair, name), names)) == [alone[n] for n in names]
    pair.unload_model("one")

    async def ask_all() -> list[str]:
        answers = await asyncio.gather(
            *(pair.send_chat_completion_request_async(REQUEST, model_id=name) for name in names)
        )
        return [answer.choices[0].message.content for answer in answers]

    assert asyncio.run(ask_all()) == [alone[n] for n in names]


# Beyond it --------------------------------------------------------------------------------


def test_a_model_is_added_and_removed_while_another_serves(
    model_dir: Path, other_dir: Path
) -> None:
    with Runner(which=Which.Plain(model_id=str(model_dir)), pa_ctxt_len=512, max_seqs=4) as runner:
        long = ChatCompletionRequest(
            messages="Hi", max_tokens=200, temperature=0.0, ignore_eos=True, stream=True
        )
        stream = runner.send_chat_completion_request(long)
        next(stream)
        other = Which.Plain(model_id=str(other_dir))
        assert runner.add_model(alias="two", which=other, chat_template="{{ messages }}") == "two"
        assert runner.add_model("again", other, load=False) == "again"
        assert said(runner, "two") != said(runner, "again"), "a template of its own"
        runner.remove_model("two")
        assert list(stream)[-1].choices[0].finish_reason == "length"
        with pytest.raises(ValidationError, match="is a name of the model"):
            runner.add_model(alias=str(model_dir), which=other)
        with pytest.raises(ValidationError, match=r"max_seqz.*did you mean 'max_seqs'"):
            runner.add_model(alias="three", which=other, max_seqz=1)
        with pytest.raises(ValidationError, match="Which variant"):
            runner.add_model(alias="three")
        assert runner.list_models() == [str(model_dir), "again"]


def test_the_request_itself_may_say_the_alias(pair: Runner) -> None:
    named = ChatCompletionRequest(messages="Hi", model="two", max_tokens=4, temperature=0.0)
    answer = pair.send_chat_completion_request(named)
    assert answer.choices[0].message.content == said(pair, "two")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"models": {"a": "some/model"}}, r"models\['a'\] must be a Which variant"),
        ({"models": [Which.Plain("x/y")]}, "models must be"),
        ({"models": {"a": {"which": Which.Plain("x/y"), "tool_callbacks": {}}}}, "no setting"),
        ({"models": {"a": Which.Plain("x/y")}, "chat_template": "{{ x }}"}, "chat_template"),
        ({"models": {"default": Which.Plain("x/y")}}, "alias"),
        ({"which": Which.Plain("x/y"), "memory_budget_bytes": 0}, "memory_budget_bytes"),
        ({"which": Which.Plain("x/y"), "idle_unload_secs": -1}, "idle_unload_secs"),
    ],
)
def test_models_that_make_no_sense_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Runner(**arguments)


def test_models_share_a_budget(model_dir: Path, other_dir: Path) -> None:
    which = {"one": Which.Plain(str(model_dir)), "two": Which.Plain(str(other_dir))}
    with Runner(models=which, pa_ctxt_len=512) as runner:
        sizes = [runner.stats(name) for name in which]
        alone = {name: said(runner, name) for name in which}
    both = sum(size["weight_bytes"] + size["cache_bytes"] for size in sizes)
    with Runner(models=which, pa_ctxt_len=512, memory_budget_bytes=both - 1) as runner:
        assert runner.list_models() == ["one"]
        assert said(runner, "two") == alone["two"]
        assert runner.list_models() == ["two"]
        assert runner.get_default_model_id() == "one"
        assert said(runner, None) == alone["one"]
        assert runner.list_models() == ["one"]
        with pytest.raises(MemoryPlanError, match="memory_budget_bytes"):
            runner.add_model("three", Which.Plain(str(other_dir)), pa_ctxt_len=1 << 16)
        assert runner.list_models() == ["one"]
    with Runner(models=which, memory_budget_bytes=both * 2) as runner:
        assert said(runner, "two") == alone["two"]
        assert runner.list_models() == ["one", "two"], "unasked, caches leave room for others"


def test_an_idle_model_is_unloaded_and_comes_back(model_dir: Path) -> None:
    gone = threading.Event()
    with Runner(which=Which.Plain(str(model_dir)), idle_unload_secs=0.05) as runner:
        first = said(runner, None)
        for _ in range(400):
            if runner.list_unloaded_models():
                break
            gone.wait(0.05)
        assert runner.list_models() == []
        assert said(runner, None) == first


def test_a_load_that_fails_midway_leaves_a_state_that_works(
    pair: Runner, other_dir: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in other_dir.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    config = json.loads((broken / "config.json").read_text())
    threads = threading.active_count()
    # The last layer is wider than its tensors: everything before it has been bound by then.
    weights = (broken / "model.safetensors").read_bytes()
    pair.add_model("three", Which.Plain(str(broken)), load=False)
    (broken / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    for _ in range(2):
        with pytest.raises(CheckpointError, match="truncated"):
            said(pair, "three")
    (broken / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}))
    (broken / "model.safetensors").write_bytes(weights)
    with pytest.raises(CheckpointError, match="must have shape"):
        pair.reload_model("three")
    status = pair.get_model_status("three")
    assert status == "unloaded"
    assert "CheckpointError" in status.error
    assert dict(pair.list_models_with_status())["three"].error == status.error
    assert threading.active_count() <= threads
    (broken / "config.json").write_text(json.dumps(config))
    pair.reload_model("three")
    assert said(pair, "three") == said(pair, "two")
    assert pair.get_model_status("three").error is None
