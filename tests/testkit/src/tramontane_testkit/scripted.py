"""A model that says what it is told to, in Hermes' way of calling tools."""

from __future__ import annotations

import json
from typing import Any

from attrs import define, field

from tramontane.api import ChatCompletionRequest
from tramontane.engine.output import Delta, OutputQueue
from tramontane.engine.sequence import Timings
from tramontane.errors import PromptTooLongError
from tramontane.pipeline.answers import ChatAnswer
from tramontane.pipeline.stream import GenerationStream
from tramontane.text.tool_calls.json_calls import Hermes
from tramontane.text.turn import TurnReader


def schema(name: str) -> dict[str, Any]:
    function = {"name": name, "description": "A tool", "parameters": {"type": "object"}}
    return {"type": "function", "function": function}


def call(name: str, **arguments: Any) -> str:
    body = json.dumps({"name": name, "arguments": arguments})
    return f"<tool_call>\n{body}\n</tool_call>"


@define
class Ended:
    prompt_ids: list[int] = field(factory=lambda: [1, 2])
    output_ids: list[int] = field(factory=lambda: [3])
    timings: Timings = field(factory=lambda: Timings(scheduled=0.0, prompt_done=1.0, finished=3.0))


@define
class Script:
    """A model that says one text a turn, and what it was asked.

    Attributes:
        hangs: leaves turns open.
        room: characters of a message that it takes.
    """

    turns: list[str]
    hangs: bool = False
    room: int = 10**9
    requests: list[ChatCompletionRequest] = field(factory=list)
    canceled: int = 0

    def start(self, request: ChatCompletionRequest) -> GenerationStream[Any, Any]:
        said = request.messages if isinstance(request.messages, list) else []
        if any(len(message["content"]) > self.room for message in said):
            raise PromptTooLongError("the prompt has too many tokens")
        self.requests.append(request)
        text = self.turns[len(self.requests) - 1]
        output = OutputQueue(stream=request.stream)
        for char in text:
            output.put(Delta(char))
        if not self.hangs:
            output.put(Delta(finish_reason="stop"))
        answer = ChatAnswer("m", [Ended()], [TurnReader(None, Hermes())], logprobs=False)
        return GenerationStream(output, answer, self._cancel)

    def _cancel(self) -> None:
        self.canceled += 1

    @property
    def results(self) -> list[str]:
        """What the model was told at last."""
        messages = self.requests[-1].messages
        assert isinstance(messages, list)
        return [message["content"] for message in messages if message["role"] == "tool"]
