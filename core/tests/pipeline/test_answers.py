"""From deltas of the engine to chunks and response: reasoning, text and tool calls."""

from __future__ import annotations

import json

import pytest
from attrs import define, field

from tramontane.api import ChatCompletionChunkResponse, ChatCompletionResponse, ToolCallType
from tramontane.engine.output import Delta, FinishReason
from tramontane.engine.sequence import Timings
from tramontane.pipeline.answers import ChatAnswer
from tramontane.text.reasoning import ReasoningSplitter
from tramontane.text.tool_calls.json_calls import Hermes
from tramontane.text.turn import TurnReader

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 17, "b": 25}}\n</tool_call>'


@define
class Ended:
    """What usage needs of a sequence."""

    prompt_ids: list[int] = field(factory=lambda: [1, 2])
    output_ids: list[int] = field(factory=lambda: [3])
    timings: Timings = field(factory=Timings)


def answer(
    text: str, reason: FinishReason = "stop", *, size: int = 1, inside: bool = False
) -> tuple[ChatCompletionResponse, list[ChatCompletionChunkResponse]]:
    reader = TurnReader(ReasoningSplitter(inside=inside), Hermes())
    made = ChatAnswer("m", [Ended()], [reader], logprobs=False)
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    chunks = [chunk for piece in pieces for chunk in made.chunks(Delta(piece))]
    return made.response(), chunks + made.chunks(Delta(finish_reason=reason))


def whole(text: str, reason: FinishReason = "stop", *, size: int = 1) -> ChatCompletionResponse:
    reader = TurnReader(ReasoningSplitter(), Hermes())
    made = ChatAnswer("m", [Ended()], [reader], logprobs=False)
    for at in range(0, len(text), size):
        made.chunks(Delta(text[at : at + size]))
    made.chunks(Delta(finish_reason=reason))
    return made.response()


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_only_a_call(size: int) -> None:
    (choice,) = whole(CALL, size=size).choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    (call,) = choice.message.tool_calls or ()
    assert call.function.name == "add"
    assert json.loads(call.function.arguments) == {"a": 17, "b": 25}
    assert call.type is ToolCallType.Function
    assert call.tp is ToolCallType.Function
    assert call.id.startswith("call-")


def test_thinking_text_and_two_calls() -> None:
    text = f"<think>{CALL}</think>\n\nI add.\n{CALL}\n{CALL}"
    (choice,) = whole(text).choices
    assert choice.message.reasoning_content == CALL
    assert choice.message.content == "I add."
    calls = choice.message.tool_calls or []
    assert [call.index for call in calls] == [0, 1]
    assert len({call.id for call in calls}) == 2


def test_a_turn_cut_off_in_a_call_gives_it_back_as_text() -> None:
    half = CALL[:40]
    (choice,) = whole(half, "length").choices
    assert choice.finish_reason == "length"
    assert choice.message.tool_calls is None
    assert choice.message.content == half
    (choice,) = whole(f"{CALL}{half}", "length").choices
    assert choice.finish_reason == "length"
    assert len(choice.message.tool_calls or ()) == 1
    assert choice.message.content == half


def test_a_stream_tells_calls_as_openai_does() -> None:
    """The first delta of a call names it, the following ones only add to its arguments."""
    _, chunks = answer(f"Hm.\n{CALL}")
    deltas = [chunk.choices[0].delta for chunk in chunks]
    calls = [call for delta in deltas for call in delta.tool_calls or ()]
    assert calls[0].function.name == "add"
    assert calls[0].id is not None
    assert all(call.id is None and call.function.name is None for call in calls[1:])
    assert json.loads("".join(call.function.arguments for call in calls)) == {"a": 17, "b": 25}
    assert sum(bool(call.function.arguments) for call in calls) > 5
    assert "".join(delta.content or "" for delta in deltas) == "Hm."
    assert [
        chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason
    ] == ["tool_calls"]
    assert chunks[-1].usage is not None
