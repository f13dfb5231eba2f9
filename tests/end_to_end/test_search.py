"""Web search by the model that travels along, over pages of the caller's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tramontane import ChatCompletionResponse, Runner, ValidationError, Which

PAGE = {
    "title": "Winds",
    "description": "Names of winds",
    "url": "https://winds.example",
    "content": "The tramontane is a cold wind from the north. " * 40,
}


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    demo = Which.Plain(model_id="tramontane/demo")
    with Runner(which=demo, enable_search=True, search_callback=lambda query: [PAGE]) as runner:
        yield runner


def answer(runner: Runner, **fields: Any) -> ChatCompletionResponse:
    request = {"messages": "What is a tramontane?", "temperature": 0.0, "max_tokens": 60}
    response = runner.send_chat_completion_request(request | fields)
    assert isinstance(response, ChatCompletionResponse)
    return response


def test_a_search_is_run_and_its_results_reach_the_model(runner: Runner) -> None:
    choice = {"type": "function", "function": {"name": "search_the_web"}}
    response = answer(runner, web_search_options={}, tool_choice=choice)
    run = (response.executed_tool_calls or [])[0]
    assert run.name == "search_the_web"
    assert isinstance(json.loads(run.arguments)["query"], str)
    (result,) = json.loads(run.result)["output"]
    assert result["url"] == PAGE["url"]
    assert 0 < len(runner.tokenize_text(run.result)) <= (runner.max_sequence_length() or 0) / 2
    assert response.usage.prompt_tokens > len(runner.tokenize_text(run.result))


def test_requests_that_do_not_ask_for_it_have_no_search(runner: Runner) -> None:
    assert answer(runner).executed_tool_calls is None
    choice = {"type": "function", "function": {"name": "search_the_web"}}
    with pytest.raises(ValidationError, match="tool_schemas"):
        answer(runner, tool_choice=choice)


def test_a_runner_without_search_says_so(model_dir: Path) -> None:
    with (
        Runner(which=Which.Plain(model_id=str(model_dir))) as plain,
        pytest.raises(ValidationError, match="enable_search=True"),
    ):
        answer(plain, web_search_options={})
