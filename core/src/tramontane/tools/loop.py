"""`ToolStream`: turns of the model with tools run between them, until it answers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self

import attrs

from tramontane.api import (
    ChatCompletionChunkResponse,
    ChatCompletionRequest,
    ChatCompletionResponse,
    ChunkChoice,
    Delta,
    ExecutedToolCall,
    ToolCallResponse,
    ToolChoice,
    Usage,
)
from tramontane.errors import PromptTooLongError
from tramontane.pipeline.answers import joined_usage
from tramontane.pipeline.stream import GenerationStream
from tramontane.tools.registry import ToolRegistry

TOO_LONG = "ERROR: the result, {:,} characters, is longer than there is room for; ask for less"

Turn = GenerationStream[ChatCompletionChunkResponse, ChatCompletionResponse]


class ToolStream:
    """A chat request in which the runner's own tools are run.

    Used as `GenerationStream` is: iterate for chunks, or call `collect`. One turn after another is
    asked for; a turn's calls become messages of the history, and so do their results. The turn is
    handed to the caller as it is when it calls nothing, when ``max_rounds`` turns have had their
    calls run, or when it calls a tool that is the caller's to run.

    Chunks of all turns are passed on. Tool calls keep counting from turn to turn, and where a
    round ends a chunk tells what was run and what came of it.

    Args:
        request: of one choice; its ``tool_schemas`` hold every tool that is offered.
        start: asks the model for one turn.
        tools: runs calls.
        max_rounds: turns whose calls are run, at most.
    """

    def __init__(
        self,
        request: ChatCompletionRequest,
        start: Callable[[ChatCompletionRequest], Turn],
        tools: ToolRegistry,
        max_rounds: int,
    ) -> None:
        self._closed: Future[None] = Future()
        self._lock = threading.Lock()  # so that a turn cannot start while the stream closes
        self._request = request
        self._start = start
        self._tools = tools
        self._max_rounds = max_rounds
        offered = {tool["function"]["name"] for tool in request.tool_schemas or ()}
        self._callers = {name for name in offered if name not in tools}
        self._executed: list[ExecutedToolCall] = []
        self._messages: list[dict[str, Any]] = []
        self._usages: list[Usage] = []
        self._round = 0
        self._num_calls = 0
        self._id: str | None = None
        self._turn = start(request)
        self._chunks = self._generate()

    def collect(self) -> ChatCompletionResponse:
        """Wait for the whole answer. Raises as `GenerationStream.collect` does."""
        try:
            while True:
                response = self._turn.collect()
                calls = self._calls_to_run(response)
                if not calls:
                    return self._final(response)
                self._next_turn(response, self._run(calls))
        except BaseException:
            self.close()
            raise

    async def collect_async(self) -> ChatCompletionResponse:
        """`collect` for asyncio; cancelling the task cancels the request."""
        try:
            while True:
                response = await self._turn.collect_async()
                calls = self._calls_to_run(response)
                if not calls:
                    return self._final(response)
                executed = await asyncio.to_thread(self._run, calls)
                await asyncio.to_thread(self._next_turn, response, executed)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Cancel the turn that is running and let go of tools that are. Safe to call twice, from
        any thread."""
        if self._closed.done():
            return
        with self._lock:
            if not self._closed.done():
                self._closed.set_result(None)
            self._turn.close()

    def __iter__(self) -> Iterator[ChatCompletionChunkResponse]:
        return self

    def __next__(self) -> ChatCompletionChunkResponse:
        try:
            return next(self._chunks)
        except StopIteration:
            raise
        except BaseException:
            self.close()
            raise

    async def __aiter__(self) -> AsyncIterator[ChatCompletionChunkResponse]:
        try:
            while True:
                async for chunk in self._turn:
                    yield self._passed_on(chunk)
                response = self._turn.response()
                calls = self._calls_to_run(response)
                if not calls:
                    return
                executed = await asyncio.to_thread(self._run, calls)
                await asyncio.to_thread(self._next_turn, response, executed)
                yield self._told(response, executed)
        finally:
            self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # The steps of a round -------------------------------------------------------------------

    def _generate(self) -> Iterator[ChatCompletionChunkResponse]:
        while True:
            for chunk in self._turn:
                yield self._passed_on(chunk)
            if self._closed.done():
                return
            response = self._turn.response()
            calls = self._calls_to_run(response)
            if not calls:
                return
            executed = self._run(calls)
            if self._closed.done():
                return
            self._next_turn(response, executed)
            yield self._told(response, executed)

    def _calls_to_run(self, response: ChatCompletionResponse) -> list[ToolCallResponse]:
        """The calls of an ended turn, or none when the turn is handed to the caller."""
        (choice,) = response.choices
        calls = choice.message.tool_calls or []
        if choice.finish_reason != "tool_calls" or self._round >= self._max_rounds:
            return []
        if any(call.function.name in self._callers for call in calls):
            return []
        return calls

    def _run(self, calls: list[ToolCallResponse]) -> list[ExecutedToolCall]:
        return self._tools.run(calls, self._round, self._closed)

    def _next_turn(self, response: ChatCompletionResponse, done: list[ExecutedToolCall]) -> None:
        """Take calls and results into the history and ask for the next turn. Results that the
        context does not hold are replaced by a word on their length."""
        earlier = list(self._messages)
        self._messages += _round_messages(response, done)
        self._executed += done
        self._usages.append(response.usage)
        self._round += 1
        self._num_calls += len(done)
        try:
            self._ask()
        except PromptTooLongError:
            for run in done:
                run.result, run.is_error = TOO_LONG.format(len(run.result)), True
            self._messages = [*earlier, *_round_messages(response, done)]
            self._ask()

    def _ask(self) -> None:
        """Ask for the turn that follows the history so far."""
        history = self._request.messages
        if isinstance(history, str):
            history = [{"role": "user", "content": history}]
        # A choice that forces a call has had one; again and again it would never end.
        choice = None if self._request.tool_choice is None else ToolChoice.Auto
        request = attrs.evolve(
            self._request, messages=[*history, *self._messages], tool_choice=choice
        )
        with self._lock:
            if not self._closed.done():
                self._turn = self._start(request)

    def _final(self, response: ChatCompletionResponse) -> ChatCompletionResponse:
        if self._executed:
            response.usage = joined_usage([*self._usages, response.usage])
            response.executed_tool_calls = self._executed
            response.tool_messages = self._messages
        return response

    def _passed_on(self, chunk: ChatCompletionChunkResponse) -> ChatCompletionChunkResponse:
        """A turn's chunk as a part of the whole answer."""
        self._id = chunk.id = self._id or chunk.id
        for choice in chunk.choices:
            for call in choice.delta.tool_calls or ():
                call.index += self._num_calls
            if choice.finish_reason is not None and self._calls_to_run(self._turn.response()):
                choice.finish_reason, chunk.usage = None, None
        if chunk.usage is not None:
            chunk.usage = joined_usage([*self._usages, chunk.usage])
        return chunk

    def _told(
        self, response: ChatCompletionResponse, executed: list[ExecutedToolCall]
    ) -> ChatCompletionChunkResponse:
        """The chunk that ends a round."""
        assert self._id is not None, "a turn has chunks"
        return ChatCompletionChunkResponse(
            id=self._id,
            model=response.model,
            choices=[ChunkChoice(delta=Delta())],
            executed_tool_calls=executed,
            tool_messages=_round_messages(response, executed),
        )


def _round_messages(
    response: ChatCompletionResponse, done: list[ExecutedToolCall]
) -> list[dict[str, Any]]:
    """What a round adds to the history: the turn with its calls, and their results."""
    message = response.choices[0].message
    asked: dict[str, Any] = {
        "role": "assistant",
        "content": message.content or "",
        "tool_calls": [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in done
        ],
    }
    if message.reasoning_content:
        asked["reasoning_content"] = message.reasoning_content
    results = [
        {"role": "tool", "tool_call_id": call.id, "name": call.name, "content": call.result}
        for call in done
    ]
    return [asked, *results]
