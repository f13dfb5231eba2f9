"""From the engine's deltas to the response objects of the API."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from typing import Protocol

from attrs import define, field

from tramontane.api import (
    CalledFunction,
    ChatCompletionChunkResponse,
    ChatCompletionResponse,
    Choice,
    ChunkChoice,
    CompletionChoice,
    CompletionChunkChoice,
    CompletionChunkResponse,
    CompletionResponse,
    FunctionDelta,
    Logprobs,
    ResponseLogprob,
    ResponseMessage,
    ToolCallDelta,
    ToolCallResponse,
    TopLogprob,
    Usage,
)
from tramontane.api import Delta as MessageDelta
from tramontane.engine.output import Delta, TokenLogprob
from tramontane.engine.sequence import Timings
from tramontane.text.tool_calls.events import (
    CallArguments,
    CallBegun,
    CallBroken,
    Said,
    Thought,
    TurnEvent,
)
from tramontane.text.turn import TurnReader


class Generated(Protocol):
    """What usage figures need to know of a finished sequence."""

    @property
    def prompt_ids(self) -> list[int]: ...
    @property
    def output_ids(self) -> list[int]: ...
    @property
    def timings(self) -> Timings: ...


def usage_of(sequences: Sequence[Generated]) -> Usage:
    """True figures of one request: the prompt is counted once, every generated token counts.

    Times run from when the first sequence was scheduled. Rates are 0 where nothing took time.
    """
    prompt = len(sequences[0].prompt_ids)
    completion = sum(len(seq.output_ids) for seq in sequences)
    times = [seq.timings for seq in sequences]
    started = [t.scheduled for t in times if t.scheduled is not None]
    prompted = [t.prompt_done for t in times if t.prompt_done is not None]
    finished = [t.finished for t in times if t.finished is not None]
    total = max(finished) - min(started) if started and finished else 0.0
    prompt_time = min(prompted) - min(started) if started and prompted else 0.0
    return _usage(prompt, completion, total, prompt_time, max(total - prompt_time, 0.0))


def joined_usage(usages: Sequence[Usage]) -> Usage:
    """Figures of several turns together."""
    prompt = sum(usage.prompt_tokens for usage in usages)
    completion = sum(usage.completion_tokens for usage in usages)
    total = sum(usage.total_time_sec for usage in usages)
    prompt_time = sum(usage.total_prompt_time_sec for usage in usages)
    completion_time = sum(usage.total_completion_time_sec for usage in usages)
    return _usage(prompt, completion, total, prompt_time, completion_time)


def _usage(
    prompt: int, completion: int, total: float, prompt_time: float, completion_time: float
) -> Usage:
    return Usage(
        completion_tokens=completion,
        prompt_tokens=prompt,
        total_tokens=prompt + completion,
        avg_tok_per_sec=_rate(prompt + completion, total),
        avg_prompt_tok_per_sec=_rate(prompt, prompt_time),
        avg_compl_tok_per_sec=_rate(completion, completion_time),
        total_time_sec=total,
        total_prompt_time_sec=prompt_time,
        total_completion_time_sec=completion_time,
    )


def _rate(tokens: int, seconds: float) -> float:
    return tokens / seconds if seconds > 0 else 0.0


def response_logprob(entry: TokenLogprob) -> ResponseLogprob:
    """The API's form of one token's log probability."""
    return ResponseLogprob(
        token=entry.token,
        logprob=entry.logprob,
        bytes=list(entry.bytes),
        top_logprobs=[
            TopLogprob(token=top.token, logprob=top.logprob, bytes=list(top.bytes))
            for top in entry.top
        ],
    )


def _by_token(
    text: str, entries: list[TokenLogprob]
) -> Iterator[tuple[str, ResponseLogprob | None]]:
    """``text`` in pieces, each with its log probability where those were asked for: a chunk has
    room for one."""
    if not entries:
        yield text, None
        return
    for entry in entries[:-1]:
        piece, text = text[: len(entry.token)], text[len(entry.token) :]
        yield piece, response_logprob(entry)
    yield text, response_logprob(entries[-1])


@define(eq=False)
class _Choice:
    """One answer in the making."""

    content: list[str] = field(factory=list)
    logprobs: list[ResponseLogprob] = field(factory=list)
    finish_reason: str = "error"


@define(eq=False)
class _ChatChoice(_Choice):
    """One answer of a chat in the making."""

    reader: TurnReader = field(kw_only=True)
    reasoning: list[str] = field(factory=list)
    calls: dict[int, ToolCallResponse] = field(factory=dict)

    def take(self, events: list[TurnEvent]) -> MessageDelta | None:
        """Keep what ``events`` tell, and make a delta of it; None of nothing."""
        said: list[str] = []
        thought: list[str] = []
        calls: dict[int, ToolCallDelta] = {}
        for event in events:
            match event:
                case Said(text):
                    said.append(text)
                case Thought(text):
                    thought.append(text)
                case CallBegun(index, call_id, name):
                    function = CalledFunction(name=name, arguments="")
                    self.calls[index] = ToolCallResponse(id=call_id, function=function)
                    calls[index] = ToolCallDelta(
                        index=index,
                        id=call_id,
                        type=self.calls[index].type,
                        function=FunctionDelta(name=name),
                    )
                case CallArguments(index, text):
                    self.calls[index].function.arguments += text
                    more = ToolCallDelta(index=index, function=FunctionDelta())
                    calls.setdefault(index, more).function.arguments += text
                case CallBroken(index):
                    del self.calls[index]
        self.content += said
        self.reasoning += thought
        if not (said or thought or calls):
            return None
        return MessageDelta(
            content="".join(said) or None,
            reasoning_content="".join(thought) or None,
            tool_calls=list(calls.values()) or None,
        )

    def finish(self, reason: str) -> MessageDelta | None:
        """No more text comes. A turn that the model ended with calls ends because of them; one
        that was cut off keeps those that are whole."""
        delta = self.take(self.reader.flush())
        self.finish_reason = "tool_calls" if self.calls and reason == "stop" else reason
        return delta

    def message(self) -> ResponseMessage:
        calls = list(self.calls.values())
        for index, call in enumerate(calls):
            call.index = index
        content = "".join(self.content)
        return ResponseMessage(
            content=None if calls and not content else content,
            reasoning_content="".join(self.reasoning) or None,
            tool_calls=calls or None,
        )


class ChatAnswer:
    """Chunks and response of a chat request.

    Args:
        model: shown in the response.
        sequences: one a choice, for usage.
        readers: one a choice.
        logprobs: whether the response carries log probabilities.
    """

    def __init__(
        self,
        model: str,
        sequences: Sequence[Generated],
        readers: Sequence[TurnReader],
        *,
        logprobs: bool,
    ) -> None:
        self._id = f"chatcmpl-{uuid.uuid4()}"
        self._model = model
        self._sequences = sequences
        self._choices = [_ChatChoice(reader=reader) for reader in readers]
        self._open = len(self._choices)
        self._wants_logprobs = logprobs

    def chunks(self, delta: Delta) -> list[ChatCompletionChunkResponse]:
        choice = self._choices[delta.index]
        parts: list[ChunkChoice] = []
        for text, logprob in _by_token(delta.text, delta.logprobs):
            message = choice.take(choice.reader.push(text))
            if message is not None or logprob is not None:
                part = message or MessageDelta(content="")
                parts.append(ChunkChoice(index=delta.index, delta=part, logprobs=logprob))
            if logprob is not None:
                choice.logprobs.append(logprob)
        if delta.finish_reason is not None:
            self._open -= 1
            rest = choice.finish(delta.finish_reason)
            last = ChunkChoice(
                index=delta.index, delta=rest or MessageDelta(), finish_reason=choice.finish_reason
            )
            parts.append(last)
        made = [
            ChatCompletionChunkResponse(id=self._id, model=self._model, choices=[part])
            for part in parts
        ]
        if self._open == 0:
            made[-1].usage = usage_of(self._sequences)
        return made

    def response(self) -> ChatCompletionResponse:
        choices = [
            Choice(
                index=index,
                finish_reason=choice.finish_reason,
                message=choice.message(),
                logprobs=Logprobs(content=choice.logprobs) if self._wants_logprobs else None,
            )
            for index, choice in enumerate(self._choices)
        ]
        usage = usage_of(self._sequences)
        return ChatCompletionResponse(id=self._id, model=self._model, choices=choices, usage=usage)


class CompletionAnswer:
    """Chunks and response of a completion request.

    Args:
        model: shown in the response.
        sequences: one a sample, for usage.
        logprobs: whether the response carries log probabilities.
        num_choices: samples to return: the likeliest ones, by mean log probability of a token.
        before, after: text put around each choice (``echo_prompt``, ``suffix``).
    """

    def __init__(
        self,
        model: str,
        sequences: Sequence[Generated],
        *,
        logprobs: bool,
        num_choices: int,
        before: str = "",
        after: str = "",
    ) -> None:
        self._id = f"cmpl-{uuid.uuid4()}"
        self._model = model
        self._sequences = sequences
        self._choices = [_Choice() for _ in sequences]
        self._open = len(self._choices)
        self._wants_logprobs = logprobs
        self._num_choices = num_choices
        self._before = before
        self._after = after

    def chunks(self, delta: Delta) -> list[CompletionChunkResponse]:
        choice = self._choices[delta.index]
        pieces = list(_by_token(delta.text, delta.logprobs))
        if not choice.content:
            pieces[0] = (self._before + pieces[0][0], pieces[0][1])
        if delta.finish_reason is not None:
            choice.finish_reason = delta.finish_reason
            self._open -= 1
            pieces[-1] = (pieces[-1][0] + self._after, pieces[-1][1])
        made = []
        for text, logprob in pieces:
            choice.content.append(text)
            if logprob is not None:
                choice.logprobs.append(logprob)
            part = CompletionChunkChoice(index=delta.index, text=text, logprobs=logprob)
            made.append(CompletionChunkResponse(id=self._id, model=self._model, choices=[part]))
        if delta.finish_reason is not None:
            made[-1].choices[0].finish_reason = delta.finish_reason
        if self._open == 0:
            made[-1].usage = usage_of(self._sequences)
        return made

    def response(self) -> CompletionResponse:
        best = self._choices
        if self._num_choices < len(best):
            best = sorted(best, key=_mean_logprob, reverse=True)[: self._num_choices]
        choices = [
            CompletionChoice(
                index=index,
                finish_reason=choice.finish_reason,
                text="".join(choice.content),
                logprobs=Logprobs(content=choice.logprobs) if self._wants_logprobs else None,
            )
            for index, choice in enumerate(best)
        ]
        usage = usage_of(self._sequences)
        return CompletionResponse(id=self._id, model=self._model, choices=choices, usage=usage)


def _mean_logprob(choice: _Choice) -> float:
    entries = choice.logprobs
    return sum(e.logprob for e in entries) / len(entries) if entries else float("-inf")
