"""Requests that cannot be served: each gets a clear error, and the next one is served."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tramontane import (
    ChatCompletionRequest,
    ChatCompletionResponse,
    CompletionRequest,
    CompletionResponse,
    Runner,
    TemplateError,
    TramontaneError,
    UnsupportedError,
    ValidationError,
    Which,
)


@pytest.fixture(autouse=True)
def _still_serves(runner: Runner) -> Iterator[None]:
    yield
    request = ChatCompletionRequest(messages="Still there?", max_tokens=2, temperature=0.0)
    assert runner.send_chat_completion_request(request)


def test_an_empty_prompt(runner: Runner) -> None:
    with pytest.raises(ValidationError, match="empty"):
        runner.send_completion_request(CompletionRequest(prompt=""))


def test_a_prompt_longer_than_the_context(runner: Runner) -> None:
    request = CompletionRequest(prompt="abcdefgh" * 50, max_tokens=8, temperature=0.0)
    with pytest.raises(ValidationError, match="truncate_sequence"):
        runner.send_completion_request(request)
    request.truncate_sequence = True
    request.ignore_eos = True
    response = runner.send_completion_request(request)
    assert isinstance(response, CompletionResponse)
    assert response.usage.prompt_tokens == 256 - 8
    kept = CompletionRequest(
        prompt=request.prompt[-(256 - 8) :], max_tokens=8, temperature=0.0, ignore_eos=True
    )
    again = runner.send_completion_request(kept)
    assert isinstance(again, CompletionResponse)
    assert again.choices[0].text == response.choices[0].text


def test_the_context_ends_an_answer(runner: Runner) -> None:
    request = CompletionRequest(prompt="x" * 250, temperature=0.0, ignore_eos=True)
    response = runner.send_completion_request(request)
    assert isinstance(response, CompletionResponse)
    assert response.choices[0].finish_reason == "length"
    assert response.usage.total_tokens == 256


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": 0}, "top_k"),
        ({"min_p": 1.0}, "min_p"),
        ({"n_choices": 0}, "n_choices"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"presence_penalty": float("inf")}, "presence_penalty"),
        ({"logit_bias": {"word": 1.0}}, "logit_bias"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"temperatur": 1.0}, "temperature"),
    ],
)
def test_sampling_values_out_of_range(runner: Runner, fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        runner.send_chat_completion_request({"messages": "Hi", **fields})


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{"content": "no role"}],
        [{"role": "user"}],
        [{"role": "user", "content": 3}],
        [{"role": "user", "content": [{"type": "hologram"}]}],
    ],
)
def test_messages_that_make_no_sense(runner: Runner, messages: list[Any]) -> None:
    with pytest.raises(TramontaneError, match="message"):
        runner.send_chat_completion_request({"messages": messages})


def test_images_are_not_for_a_text_model(runner: Runner) -> None:
    image = {"type": "image_url", "image_url": {"url": "a.png"}}
    message = {"role": "user", "content": [{"type": "text", "text": "What?"}, image]}
    with pytest.raises(TramontaneError, match="image"):
        runner.send_chat_completion_request({"messages": [message]})


def test_text_that_is_no_unicode(runner: Runner) -> None:
    with pytest.raises(ValidationError):
        runner.send_completion_request(CompletionRequest(prompt="half a pair: \ud83d"))


def test_token_ids_that_do_not_exist(runner: Runner) -> None:
    with pytest.raises(ValidationError):
        runner.detokenize_text([10**9])
    with pytest.raises(ValidationError):
        runner.detokenize_text([-1])


def test_what_is_not_there_yet_says_so(runner: Runner) -> None:
    with pytest.raises(UnsupportedError, match="not in this release"):
        runner.send_chat_completion_request({"messages": "Hi", "adapter": "poet"})


def test_a_required_call_of_no_tool(runner: Runner) -> None:
    request = {"messages": "Hi", "tool_choice": "required", "tool_schemas": []}
    with pytest.raises(ValidationError, match="tool_schemas"):
        runner.send_chat_completion_request(request)
    with pytest.raises(UnsupportedError, match="chat request"):
        runner.send_completion_request({"prompt": "Hi", "tool_choice": "required"})


def test_a_template_that_cannot_be_read(model_dir: Path) -> None:
    with pytest.raises(TemplateError, match="line 1"):
        Runner(which=Which.Plain(model_id=str(model_dir)), chat_template="{% for %}")


def test_a_template_that_refuses(model_dir: Path) -> None:
    template = "{{ raise_exception('only in verse') }}"
    with Runner(which=Which.Plain(model_id=str(model_dir)), chat_template=template) as runner:
        with pytest.raises(TemplateError, match="only in verse"):
            runner.send_chat_completion_request(ChatCompletionRequest(messages="Hi"))
        request = CompletionRequest(prompt="Hi", max_tokens=2)
        assert runner.send_completion_request(request)


def test_best_of_cannot_stream(runner: Runner) -> None:
    with pytest.raises(ValidationError, match="best_of"):
        runner.send_completion_request(CompletionRequest(prompt="a", best_of=2, stream=True))


def test_a_request_that_cannot_be_sampled_fails_alone(runner: Runner) -> None:
    """A bias beyond float32 leaves no distribution; who runs beside it goes on."""
    beside = runner.send_chat_completion_request(
        ChatCompletionRequest(
            messages="Hi", max_tokens=60, stream=True, temperature=0.0, ignore_eos=True
        )
    )
    request = ChatCompletionRequest(messages="Hi", temperature=1.0, logit_bias={0: 1e300})
    with pytest.raises(TramontaneError):
        runner.send_chat_completion_request(request)
    assert list(beside)[-1].choices[0].finish_reason == "length"


def test_dictionaries_give_the_same_as_objects(runner: Runner) -> None:
    fields = {"max_tokens": 4, "temperature": 0.0}
    first = runner.send_chat_completion_request({"messages": "Hi", **fields})
    second = runner.send_chat_completion_request(ChatCompletionRequest(messages="Hi", **fields))
    assert isinstance(first, ChatCompletionResponse)
    assert isinstance(second, ChatCompletionResponse)
    assert first.choices == second.choices


def test_a_completion_offers_no_tools(runner: Runner) -> None:
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    with pytest.raises(UnsupportedError, match="tool_schemas"):
        runner.send_completion_request(CompletionRequest(prompt="a", tool_schemas=[tool]))
