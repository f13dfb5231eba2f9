"""gpt-oss's way of answering, with its own template: channels come apart, whole and streamed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tramontane import ChatCompletionResponse, Runner
from tramontane_testkit.data import data_path
from tramontane_testkit.scripted_model import let_say, scripted_runner

SPECIALS = ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>")
ENDS = ("<|return|>", "<|call|>")
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
THINK = "<|channel|>analysis<|message|>They want 4.<|end|><|start|>assistant"
ANSWER = "<|channel|>final<|message|>It is **4**.<|return|>"
CALL = (
    "<|channel|>commentary to=functions.weather <|constrain|>json<|message|>"
    '{"city": "Paris"}<|call|>'
)


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    template = data_path("chat-templates", "openai-gpt-oss-120b.jinja").read_text("utf-8")
    directory = tmp_path_factory.mktemp("harmony")

    def weather(name: str, arguments: dict[str, Any]) -> str:
        return f"{arguments['city']}: sunny"

    with scripted_runner(
        directory, template, (*SPECIALS, *ENDS), tool_callbacks={"weather": weather}
    ) as runner:
        yield runner


def ask(runner: Runner, *turns: str, **request: Any) -> ChatCompletionResponse:
    let_say(runner, *turns)
    asked = {"messages": "2 + 2?", "temperature": 0.0, "max_tool_rounds": 0, **request}
    response = runner.send_chat_completion_request(asked)
    assert isinstance(response, ChatCompletionResponse)
    return response


def streamed(runner: Runner, *turns: str, **request: Any) -> list[Any]:
    let_say(runner, *turns)
    asked = {"messages": "2 + 2?", "temperature": 0.0, "max_tool_rounds": 0, **request}
    return list(runner.send_chat_completion_request({**asked, "stream": True}))


def test_analysis_is_reasoning_and_final_is_the_answer(runner: Runner) -> None:
    (choice,) = ask(runner, THINK + ANSWER).choices
    assert choice.message.content == "It is **4**."
    assert choice.message.reasoning_content == "They want 4."
    assert choice.message.tool_calls is None
    assert choice.finish_reason == "stop"


def test_streams_tell_them_apart_as_they_come(runner: Runner) -> None:
    chunks = streamed(runner, THINK + ANSWER)
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(d.reasoning_content or "" for d in deltas) == "They want 4."
    assert "".join(d.content or "" for d in deltas) == "It is **4**."
    assert sum(bool(d.reasoning_content) for d in deltas) > 3
    first = next(i for i, d in enumerate(deltas) if d.content)
    assert not any(d.reasoning_content for d in deltas[first:])
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_end_closes_a_message_and_not_the_turn(runner: Runner) -> None:
    commentary = "<|channel|>commentary<|message|>I will add.<|end|><|start|>assistant"
    message = ask(runner, THINK + commentary + ANSWER).choices[0].message
    assert message.reasoning_content == "They want 4.I will add."
    assert message.content == "It is **4**."


def test_what_is_cut_off_stays_where_it_belongs(runner: Runner) -> None:
    (choice,) = ask(runner, THINK + ANSWER, max_tokens=14).choices
    assert (choice.finish_reason, choice.message.content) == ("length", "")
    assert choice.message.reasoning_content == "They"


@pytest.mark.parametrize(
    "call",
    [
        CALL,
        # The recipient may also stand with the role, which the prompt ends with.
        ' to=functions.weather<|channel|>commentary json<|message|>{"city": "Paris"}<|call|>',
    ],
)
def test_commentary_to_a_function_is_a_call(runner: Runner, call: str) -> None:
    said = call if call.startswith(" to") else THINK + call
    (choice,) = ask(runner, said, tool_schemas=[WEATHER]).choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    (made,) = choice.message.tool_calls or []
    assert made.function.name == "weather"
    assert json.loads(made.function.arguments) == {"city": "Paris"}

    deltas = [c.choices[0].delta for c in streamed(runner, said, tool_schemas=[WEATHER])]
    parts = [part for delta in deltas for part in delta.tool_calls or ()]
    assert "".join(part.function.arguments or "" for part in parts) == '{"city": "Paris"}'
    assert [part.function.name for part in parts if part.function.name] == ["weather"]


def test_code_for_python_is_a_call_too(runner: Runner) -> None:
    said = "<|channel|>analysis to=python code<|message|>print(2 + 2)<|call|>"
    (choice,) = ask(runner, said, tool_schemas=[WEATHER]).choices
    (made,) = choice.message.tool_calls or []
    assert made.function.name == "python"
    assert json.loads(made.function.arguments) == {"code": "print(2 + 2)"}
    assert choice.finish_reason == "tool_calls"
    cut = ask(runner, said, tool_schemas=[WEATHER], max_tokens=30).choices[0]
    assert (cut.finish_reason, cut.message.tool_calls) == ("length", None)


def test_rounds_show_the_model_its_call_and_the_result(runner: Runner) -> None:
    final = "<|channel|>final<|message|>Sunny.<|return|>"
    response = ask(runner, THINK + CALL, final, tool_schemas=[WEATHER], max_tool_rounds=2)
    assert response.choices[0].message.content == "Sunny."
    (run,) = response.executed_tool_calls or []
    assert run.result == "Paris: sunny"


def test_a_call_of_the_history_may_have_null_for_content(runner: Runner) -> None:
    message = ask(runner, THINK + CALL, tool_schemas=[WEATHER]).choices[0].message
    (call,) = message.tool_calls or []
    history = [
        {"role": "user", "content": "Weather?"},
        message.to_dict(),
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
    ]
    with_null = ask(runner, ANSWER, messages=history).usage.prompt_tokens
    for absent in ({}, {"content": ""}):
        again = {k: v for k, v in history[1].items() if k != "content"} | absent
        messages = [history[0], again, history[2]]
        assert ask(runner, ANSWER, messages=messages).usage.prompt_tokens == with_null


def test_effort_reaches_the_prompt(runner: Runner) -> None:
    def length(**request: Any) -> int:
        return ask(runner, ANSWER, **request).usage.prompt_tokens

    low = length(reasoning_effort="low")  # a token is a byte
    assert length(reasoning_effort="medium") == length() == low + 3
    assert length(reasoning_effort="high") == low + 1


@pytest.mark.parametrize("head", ["", " <|constrain|>json"])
def test_a_grammar_holds_the_final_channel_alone(runner: Runner, head: str) -> None:
    final = f"<|channel|>final{head}<|message|>It is **4**.<|return|>"
    request = {"grammar_type": "regex", "grammar": r"It is \*\*\d\*\*\."}
    message = ask(runner, THINK + final, **request).choices[0].message
    assert message.content == "It is **4**."
    assert message.reasoning_content == "They want 4."
    wrong = final.replace("4", "x")
    held = ask(runner, wrong, max_tokens=40, **request).choices[0].message.content or ""
    assert held.startswith("It is **")
    assert "x" not in held


def test_a_call_may_be_forced_and_thought_about(runner: Runner) -> None:
    request = {"tool_schemas": [WEATHER], "tool_choice": "required"}
    (choice,) = ask(runner, THINK + CALL, **request).choices
    assert choice.message.reasoning_content == "They want 4."
    (made,) = choice.message.tool_calls or []
    assert (made.function.name, choice.finish_reason) == ("weather", "tool_calls")
    held = ask(runner, THINK + ANSWER, max_tokens=60, **request).choices[0]
    assert not held.message.content  # "final" was not to be had


def test_strict_tools_and_answers_go_together(runner: Runner) -> None:
    strict = {**WEATHER, "function": {**WEATHER["function"], "strict": True}}
    assert ask(runner, THINK + ANSWER, tool_schemas=[strict]).choices[0].message.content
    (made,) = ask(runner, THINK + CALL, tool_schemas=[strict]).choices[0].message.tool_calls or []
    assert json.loads(made.function.arguments) == {"city": "Paris"}
    wrong = CALL.replace('"Paris"', "17")
    held = ask(runner, wrong, tool_schemas=[strict], max_tokens=70).choices[0].message
    assert "17" not in (held.content or "")
