"""The model that travels along calls tools: automatically, streamed, in asyncio, by hand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import pytest

from tramontane import (
    ChatCompletionRequest,
    ChatCompletionResponse,
    Runner,
    TemplateError,
    ValidationError,
    Which,
)

NUMBER = {"type": "integer"}
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": NUMBER, "b": NUMBER},
            "required": ["a", "b"],
        },
    },
}
SUM: Mapping[str, Any] = {
    "messages": "What is 17 plus 25?",
    "tool_schemas": [ADD],
    "temperature": 0.0,
    "max_tokens": 100,
}


@pytest.fixture(scope="module")
def demo() -> Iterator[Runner]:
    def add(name: str, arguments: dict[str, Any]) -> str:
        return str(arguments["a"] + arguments["b"])

    with Runner(which=Which.Plain(model_id="tramontane/demo"), tool_callbacks={"add": add}) as run:
        yield run


def answer(runner: Runner, **fields: Any) -> ChatCompletionResponse:
    response = runner.send_chat_completion_request({**SUM, **fields})
    assert isinstance(response, ChatCompletionResponse)
    return response


def test_the_runner_runs_what_the_model_calls(demo: Runner) -> None:
    response = answer(demo)
    assert "42" in (response.choices[0].message.content or "")
    (run,) = response.executed_tool_calls or []
    assert json.loads(run.arguments) == {"a": 17, "b": 25}
    assert run.result == "42"


def test_without_rounds_the_call_is_the_callers(demo: Runner) -> None:
    response = answer(demo, max_tool_rounds=0)
    assert response.choices[0].finish_reason == "tool_calls"
    message = response.choices[0].message
    assert message.content is None
    (call,) = message.tool_calls or []
    history = [
        {"role": "user", "content": SUM["messages"]},
        message.to_dict(),
        {"role": "tool", "tool_call_id": call.id, "name": "add", "content": "42"},
    ]
    again = answer(demo, messages=history)
    assert "42" in (again.choices[0].message.content or "")


def test_no_tools_means_none(demo: Runner) -> None:
    response = answer(demo, tool_choice="none")
    assert response.choices[0].message.tool_calls is None
    assert response.executed_tool_calls is None


def test_streams_agree_with_the_response(demo: Runner) -> None:
    async def main() -> list[Any]:
        stream = await demo.send_chat_completion_request_async({**SUM, "stream": True})
        assert isinstance(stream, AsyncIterator) or hasattr(stream, "__aiter__")
        return [chunk async for chunk in stream]

    whole = answer(demo).choices[0].message.content
    stream = demo.send_chat_completion_request({**SUM, "stream": True})
    for chunks in (list(stream), asyncio.run(main())):  # type: ignore[arg-type]
        said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert said == whole
        assert any(chunk.executed_tool_calls for chunk in chunks)
        assert chunks[-1].choices[0].finish_reason == "stop"


def test_several_answers_would_have_several_histories(demo: Runner) -> None:
    with pytest.raises(ValidationError, match="n_choices"):
        answer(demo, n_choices=2)
    response = answer(demo, n_choices=2, max_tool_rounds=0)
    assert [choice.finish_reason for choice in response.choices] == ["tool_calls"] * 2


def test_a_template_without_tools_says_so(runner: Runner) -> None:
    with pytest.raises(TemplateError, match="tool_choice"):
        runner.send_chat_completion_request(ChatCompletionRequest("Hi", tool_schemas=[ADD]))


def test_a_result_beyond_the_context_harms_nothing() -> None:
    def much(name: str, arguments: dict[str, Any]) -> str:
        return "42 " * 100_000

    demo = Which.Plain(model_id="tramontane/demo")
    with Runner(which=demo, tool_callbacks={"add": much}) as runner:
        response = answer(runner)
        (run,) = response.executed_tool_calls or []
        assert run.is_error
        assert "300,000 characters" in run.result
        assert response.choices[0].finish_reason == "stop"


SMALL = {"a": {"type": "integer", "maximum": 9}, "b": {"type": "integer", "enum": [1, 2, 3]}}


def test_strict_arguments_are_held_to_their_schema_while_they_are_written(demo: Runner) -> None:
    """Asked for 17 plus 25, the model may not say either number."""
    parameters = {**ADD["function"]["parameters"], "properties": SMALL}  # type: ignore[index]
    loose = {"type": "function", "function": {"name": "add", "parameters": parameters}}
    strict = {"type": "function", "function": {**loose["function"], "strict": True}}  # type: ignore[dict-item]
    said = []
    for tool in (loose, strict):
        response = answer(demo, tool_schemas=[tool], max_tool_rounds=0)
        (call,) = response.choices[0].message.tool_calls or []
        said.append(json.loads(call.function.arguments))
    assert said[0] == {"a": 17, "b": 25}
    assert said[1]["a"] <= 9
    assert said[1]["b"] in (1, 2, 3)


def test_a_call_cut_off_comes_back_as_text(demo: Runner) -> None:
    for max_tokens in (3, 8, 14, 20):
        response = answer(demo, max_tokens=max_tokens)
        (choice,) = response.choices
        assert choice.finish_reason == "length"
        assert choice.message.tool_calls is None
        whole = '<tool_call>\n{"name": "add", "arguments": {"a": 17, "b": 25}}'
        assert choice.message.content
        assert whole.startswith(choice.message.content)
        assert response.executed_tool_calls is None
        stream = demo.send_chat_completion_request(
            {**SUM, "stream": True, "max_tokens": max_tokens}
        )
        chunks = list(stream)  # type: ignore[arg-type]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)  # type: ignore[union-attr]
        assert text == choice.message.content


def test_arguments_are_streamed_as_they_are_written(demo: Runner) -> None:
    stream = demo.send_chat_completion_request({**SUM, "stream": True, "max_tool_rounds": 0})
    deltas = [
        delta
        for chunk in stream  # type: ignore[union-attr]
        for delta in chunk.choices[0].delta.tool_calls or ()  # type: ignore[union-attr]
    ]
    assert len(deltas) > 5
    assert [delta.id is not None for delta in deltas] == [True] + [False] * (len(deltas) - 1)
    assert deltas[0].function.name == "add"
    text = "".join(delta.function.arguments for delta in deltas)
    assert json.loads(text) == {"a": 17, "b": 25}
