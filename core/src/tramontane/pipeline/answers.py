"""From the engine's deltas to the response objects of the API."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from typing import Protocol

from attrs import define, field

from tramontane.api import (
    ChatCompletionChunkResponse,
    ChatCompletionResponse,
    Choice,
    ChunkChoice,
    CompletionChoice,
    CompletionChunkChoice,
    CompletionChunkResponse,
    CompletionResponse,
    Logprobs,
    ResponseLogprob,
    ResponseMessage,
    TopLogprob,
    Usage,
)
from tramontane.api import Delta as MessageDelta
from tramontane.engine.output import Delta, TokenLogprob
from tramontane.engine.sequence import Timings
from tramontane.text.reasoning import ReasoningSplitter


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
    completion_time = max(total - prompt_time, 0.0)
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

    splitter: ReasoningSplitter | None
    content: list[str] = field(factory=list)
    reasoning: list[str] = field(factory=list)
    logprobs: list[ResponseLogprob] = field(factory=list)
    finish_reason: str = "error"


class ChatAnswer:
    """Chunks and response of a chat request.

    Args:
        model: shown in the response.
        sequences: one a choice, for usage.
        splitters: one a choice; None where the model does not think.
        logprobs: whether the response carries log probabilities.
    """

    def __init__(
        self,
        model: str,
        sequences: Sequence[Generated],
        splitters: Sequence[ReasoningSplitter | None],
        *,
        logprobs: bool,
    ) -> None:
        self._id = f"chatcmpl-{uuid.uuid4()}"
        self._model = model
        self._sequences = sequences
        self._choices = [_Choice(splitter) for splitter in splitters]
        self._open = len(self._choices)
        self._wants_logprobs = logprobs

    def chunks(self, delta: Delta) -> list[ChatCompletionChunkResponse]:
        choice = self._choices[delta.index]
        parts: list[ChunkChoice] = []
        for text, logprob in _by_token(delta.text, delta.logprobs):
            message = self._message(choice, text, last=False)
            if message is not None or logprob is not None:
                part = message or MessageDelta(content="")
                parts.append(ChunkChoice(index=delta.index, delta=part, logprobs=logprob))
            if logprob is not None:
                choice.logprobs.append(logprob)
        if delta.finish_reason is not None:
            choice.finish_reason = delta.finish_reason
            self._open -= 1
            rest = self._message(choice, "", last=True)
            last = ChunkChoice(
                index=delta.index, delta=rest or MessageDelta(), finish_reason=delta.finish_reason
            )
            parts.append(last)
        made = [
            ChatCompletionChunkResponse(id=self._id, model=self._model, choices=[part])
            for part in parts
        ]
        if self._open == 0:
            made[-1].usage = usage_of(self._sequences)
        return made

    def _message(self, choice: _Choice, text: str, *, last: bool) -> MessageDelta | None:
        """What new text adds to thinking and answer; None for nothing."""
        thought, said = None, text
        if choice.splitter is not None:
            split = choice.splitter.flush() if last else choice.splitter.push(text)
            thought, said = split.reasoning or None, split.content
        if thought:
            choice.reasoning.append(thought)
        if said:
            choice.content.append(said)
        if not (thought or said):
            return None
        return MessageDelta(content=said or None, reasoning_content=thought)

    def response(self) -> ChatCompletionResponse:
        choices = [
            Choice(
                index=index,
                finish_reason=choice.finish_reason,
                message=ResponseMessage(
                    content="".join(choice.content),
                    reasoning_content="".join(choice.reasoning) or None,
                ),
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
        self._choices = [_Choice(None) for _ in sequences]
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
