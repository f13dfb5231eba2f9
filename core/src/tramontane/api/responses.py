"""Responses, in the shape of OpenAI's API and with the names of the mistralrs SDK."""

from __future__ import annotations

import time
from typing import Any

from attrs import define, field

from tramontane.api.convert import Record
from tramontane.api.enums import ToolCallType
from tramontane.api.validators import member

SYSTEM_FINGERPRINT = "local"


def _call_type(value: Any) -> Any:
    return member(ToolCallType, value)


def _call_type_or_none(value: Any) -> Any:
    return None if value is None else _call_type(value)


def _now() -> int:
    return int(time.time())


@define(kw_only=True)
class TopLogprob(Record):
    """One of the most likely tokens of a step.

    Attributes:
        token: its text.
        logprob: natural logarithm of its probability at temperature 1, after penalties.
        bytes: its bytes, which need not be valid UTF-8.
    """

    token: str
    logprob: float
    bytes: list[int] | None = None


@define(kw_only=True)
class ResponseLogprob(Record):
    """The generated token of a step, as `TopLogprob`, and the most likely ones beside it.

    Attributes:
        top_logprobs: most likely first.
    """

    token: str
    logprob: float
    bytes: list[int] | None = None
    top_logprobs: list[TopLogprob] = field(factory=list)


@define(kw_only=True)
class Logprobs(Record):
    """Log probabilities of an answer, a token each."""

    content: list[ResponseLogprob] | None = None


@define(kw_only=True)
class CalledFunction(Record):
    """What the model wants called.

    Attributes:
        arguments: a JSON object as text, as the model wrote it.
    """

    name: str
    arguments: str


@define(kw_only=True)
class ToolCallResponse(Record):
    """One tool call of an answer."""

    index: int = 0
    id: str
    type: ToolCallType = field(default=ToolCallType.Function, converter=_call_type)
    function: CalledFunction

    @property
    def tp(self) -> ToolCallType:
        """``type`` under its mistralrs name."""
        return self.type


@define(kw_only=True)
class FunctionDelta(Record):
    """More of what the model wants called.

    Attributes:
        name: in the call's first delta only.
        arguments: the next piece of the JSON text; all pieces together are the arguments.
    """

    name: str | None = None
    arguments: str = ""


@define(kw_only=True)
class ToolCallDelta(Record):
    """What a chunk adds to one tool call.

    A call stands when its choice ends with the finish reason ``"tool_calls"``. One that the
    answer's end cuts off, or that turns out to be malformed, comes back as content: its arguments
    are then no JSON object.

    Attributes:
        index: which call of the answer.
        id, type: in the call's first delta only.
    """

    index: int = 0
    id: str | None = None
    type: ToolCallType | None = field(default=None, converter=_call_type_or_none)
    function: FunctionDelta

    @property
    def tp(self) -> ToolCallType | None:
        """``type`` under its mistralrs name."""
        return self.type


@define(kw_only=True)
class ExecutedToolCall(Record):
    """A tool call that was run, or tried, while the answer was made.

    Attributes:
        round: which turn of the model called it, from 0.
        id, name, arguments: as the model called it.
        result: the text that the model was given.
        is_error: whether that text tells of a failure.
        seconds: how long it took.
    """

    round: int
    id: str
    name: str
    arguments: str
    result: str
    is_error: bool = False
    seconds: float = 0.0


@define(kw_only=True)
class ResponseMessage(Record):
    """The answer.

    Attributes:
        content: text, None when there is none beside tool calls.
        tool_calls: what the model wants called, None when nothing.
        reasoning_content: what it thought first, None when it did not.
    """

    content: str | None = None
    role: str = "assistant"
    tool_calls: list[ToolCallResponse] | None = None
    reasoning_content: str | None = None


@define(kw_only=True)
class Delta(Record):
    """What a chunk adds to the answer; fields as in `ResponseMessage`."""

    content: str | None = None
    role: str = "assistant"
    tool_calls: list[ToolCallDelta] | None = None
    reasoning_content: str | None = None


@define(kw_only=True)
class Usage(Record):
    """Tokens and time of a request, all its choices together.

    Attributes:
        avg_tok_per_sec: all tokens over all time; the next two are of the prompt and of the
            answer alone.
        total_time_sec: seconds from the first forward to the last token.
        total_prompt_time_sec: until the prompt was in the cache.
        total_completion_time_sec: from then on.
    """

    completion_tokens: int
    prompt_tokens: int
    total_tokens: int
    avg_tok_per_sec: float
    avg_prompt_tok_per_sec: float
    avg_compl_tok_per_sec: float
    total_time_sec: float
    total_prompt_time_sec: float
    total_completion_time_sec: float


@define(kw_only=True)
class Choice(Record):
    """One answer to a chat request.

    Attributes:
        finish_reason: ``"stop"``, ``"length"``, ``"tool_calls"`` or ``"canceled"``.
    """

    finish_reason: str
    index: int = 0
    message: ResponseMessage
    logprobs: Logprobs | None = None


@define(kw_only=True)
class ChunkChoice(Record):
    """One answer's part of a chunk.

    Attributes:
        finish_reason: None until its last chunk; then as in `Choice`, or ``"error"``.
    """

    finish_reason: str | None = None
    index: int = 0
    delta: Delta
    logprobs: ResponseLogprob | None = None


@define(kw_only=True)
class ChatCompletionResponse(Record):
    """The answers to a chat request.

    Attributes:
        created: Unix time in seconds.
        executed_tool_calls: what automatic tool rounds ran, in order; None without any.
        tool_messages: the messages of those rounds. A conversation that goes on has them between
            the request's messages and the answer.
    """

    id: str
    choices: list[Choice]
    created: int = field(factory=_now)
    model: str
    system_fingerprint: str = SYSTEM_FINGERPRINT
    object: str = "chat.completion"
    usage: Usage
    executed_tool_calls: list[ExecutedToolCall] | None = None
    tool_messages: list[dict[str, Any]] | None = None


@define(kw_only=True)
class ChatCompletionChunkResponse(Record):
    """A piece of the answers to a chat request.

    Attributes:
        usage: on the last chunk only.
        executed_tool_calls: on the chunk that ends an automatic tool round, what it ran.
        tool_messages: on that chunk, the round's messages, as in `ChatCompletionResponse`.
    """

    id: str
    choices: list[ChunkChoice]
    created: int = field(factory=_now)
    model: str
    system_fingerprint: str = SYSTEM_FINGERPRINT
    object: str = "chat.completion.chunk"
    usage: Usage | None = None
    executed_tool_calls: list[ExecutedToolCall] | None = None
    tool_messages: list[dict[str, Any]] | None = None


@define(kw_only=True)
class CompletionChoice(Record):
    """One continuation of a text; ``finish_reason`` as in `Choice`."""

    finish_reason: str
    index: int = 0
    text: str
    logprobs: Logprobs | None = None


@define(kw_only=True)
class CompletionChunkChoice(Record):
    """One continuation's part of a chunk; ``finish_reason`` as in `ChunkChoice`."""

    finish_reason: str | None = None
    index: int = 0
    text: str
    logprobs: ResponseLogprob | None = None


@define(kw_only=True)
class CompletionResponse(Record):
    """The continuations of a text."""

    id: str
    choices: list[CompletionChoice]
    created: int = field(factory=_now)
    model: str
    system_fingerprint: str = SYSTEM_FINGERPRINT
    object: str = "text_completion"
    usage: Usage


@define(kw_only=True)
class CompletionChunkResponse(Record):
    """A piece of the continuations of a text; ``usage`` on the last one only."""

    id: str
    choices: list[CompletionChunkChoice]
    created: int = field(factory=_now)
    model: str
    system_fingerprint: str = SYSTEM_FINGERPRINT
    object: str = "text_completion.chunk"
    usage: Usage | None = None


@define(kw_only=True)
class ImageChoice(Record):
    """One image: the path of a PNG file, or its bytes in base64."""

    url: str | None = None
    b64_json: str | None = field(
        default=None, repr=lambda data: repr(data) if data is None else f"<{len(data)} characters>"
    )


@define(kw_only=True)
class ImageGenerationResponse(Record):
    """Generated images."""

    created: int = field(factory=_now)
    data: list[ImageChoice]


def _samples(pcm: Any) -> str:
    return f"<{len(pcm)} samples>"


@define(kw_only=True)
class SpeechGenerationResponse(Record):
    """Generated sound.

    Attributes:
        pcm: samples in [-1, 1], channels interleaved.
        rate: samples per second of one channel.
        channels: number of channels.
    """

    pcm: list[float] = field(repr=_samples)
    rate: int
    channels: int
