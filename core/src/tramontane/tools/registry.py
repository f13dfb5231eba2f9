"""`ToolRegistry`: the tools of a runner, and running them."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import json
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, InvalidStateError, wait
from contextlib import suppress
from typing import Any

from attrs import define

from tramontane.api import ChatCompletionRequest, ExecutedToolCall, ToolCallResponse, ToolChoice
from tramontane.errors import ValidationError
from tramontane.hooks.specs import ToolSource

log = logging.getLogger(__name__)

Approval = Callable[[str, Mapping[str, Any]], bool | str]
Callback = Callable[[str, dict[str, Any]], Any]

DECLINED = "the user declined this call"


class ToolError(Exception):
    """A call that gives no result. The model is told the message."""


@define(eq=False)
class _Job:
    """One call while it runs. Times are seconds of ``time.monotonic``."""

    call: ToolCallResponse
    result: Future[str]
    started: float
    ended: float = 0.0


class ToolRegistry:
    """Callbacks and tool sources by name. Thread-safe.

    Whatever a tool does, the model gets a text to read: its result, or what went wrong.

    Args:
        callbacks: ``f(name, arguments)`` by tool name. Such a tool is offered by requests that
            carry its schema.
        sources: tools that are offered to every request.
        approval: asked before each call with name and arguments. False declines it, a text
            declines it and says why.
        timeout_secs: how long a call may take; None for as long as it likes.

    Raises:
        ValidationError: two tools have one name.
    """

    def __init__(
        self,
        callbacks: Mapping[str, Callback] | None = None,
        sources: Iterable[ToolSource] = (),
        *,
        approval: Approval | None = None,
        timeout_secs: float | None = None,
    ) -> None:
        self._callbacks = dict(callbacks or {})
        self._sources = list(sources)
        self._approval = approval
        self._timeout_secs = timeout_secs
        self._owners()

    def __bool__(self) -> bool:
        return bool(self._callbacks or self._sources)

    def __contains__(self, name: object) -> bool:
        return name in self._callbacks or any(name in source.tools for source in self._sources)

    def joined(self, source: ToolSource) -> ToolRegistry:
        """These tools and one more source, for one request.

        Raises:
            ValidationError: two tools have one name.
        """
        return ToolRegistry(
            self._callbacks,
            [*self._sources, source],
            approval=self._approval,
            timeout_secs=self._timeout_secs,
        )

    def offered(self, request: ChatCompletionRequest) -> list[dict[str, Any]]:
        """Schemas of a request's tools: its own, then those of the sources.

        Raises:
            ValidationError: two tools have one name.
        """
        own = list(request.tool_schemas or ())
        if request.tool_choice is ToolChoice.NoTools:
            return own
        names = {tool["function"]["name"] for tool in own}
        for name, source in self._owners().items():
            if name in names:
                raise ValidationError(
                    f"tool_schemas has a tool called {name!r}, and so has {source.name}: rename "
                    f"one of them"
                )
            own.append(_schema(name, source.tools[name]))
        return own

    def run(
        self, calls: Sequence[ToolCallResponse], round_idx: int, closing: Future[None]
    ) -> list[ExecutedToolCall]:
        """Run the calls of one turn beside each other.

        Args:
            round_idx: for the record.
            closing: once done, nobody wants the results any more: returns at once with none.
        """
        jobs = [self._start(call) for call in calls]
        for job in jobs:
            while not (job.result.done() or closing.done()):
                left = None
                if self._timeout_secs is not None:
                    left = job.started + self._timeout_secs - time.monotonic()
                if left is not None and left <= 0:
                    _settle(job.result, ToolError(f"no result within {self._timeout_secs:g} s"))
                    break
                either: tuple[Future[Any], ...] = (job.result, closing)
                wait(either, timeout=left, return_when=FIRST_COMPLETED)
        if closing.done():
            return []
        return [_record(job, round_idx) for job in jobs]

    def status(self) -> dict[str, dict[str, Any]]:
        """How what the sources depend on is doing, by its name."""
        return {
            name: dict(one) for source in self._sources for name, one in source.status().items()
        }

    def close(self) -> None:
        """Release what the sources hold."""
        for source in self._sources:
            try:
                source.close()
            except Exception:
                log.exception("tools of %s could not be closed", source.name)

    def _owners(self) -> dict[str, ToolSource]:
        """Tool → its source. Sources may gain and lose tools while they run."""
        owners: dict[str, ToolSource] = {}
        for source in self._sources:
            for name in list(source.tools):
                other = owners.get(name)
                if other is not None or name in self._callbacks:
                    first = "tool_callbacks" if other is None else other.name
                    raise ValidationError(
                        f"{first} and {source.name} both have a tool called {name!r}: rename one, "
                        f"or give a source a prefix"
                    )
                owners[name] = source
        return owners

    def _start(self, call: ToolCallResponse) -> _Job:
        result: Future[str] = Future()
        job = _Job(call, result, time.monotonic())
        try:
            arguments = _arguments(call)
            function = self._function(call.function.name)
            self._ask(call.function.name, arguments)
        except ToolError as error:
            result.set_exception(error)
            return job
        job.started = time.monotonic()
        result.add_done_callback(lambda _: setattr(job, "ended", time.monotonic()))
        # A thread of its own, since a call that hangs can be abandoned but not ended.
        context = contextvars.copy_context()
        threading.Thread(
            target=context.run,
            args=(_work, function, call.function.name, arguments, result),
            name=f"tramontane-tool-{call.function.name}",
            daemon=True,
        ).start()
        return job

    def _function(self, name: str) -> Callback:
        if name in self._callbacks:
            return self._callbacks[name]
        source = self._owners().get(name)
        if source is None:
            there = ", ".join([*self._callbacks, *self._owners()])
            raise ToolError(f"there is no tool called {name!r}; there are {there}")
        return source.call

    def _ask(self, name: str, arguments: dict[str, Any]) -> None:
        if self._approval is None:
            return
        try:
            answer = self._approval(name, arguments)
        except Exception as cause:
            log.exception("tool_approval failed; the call of %s is declined", name)
            raise ToolError(DECLINED) from cause
        if answer is not True:
            raise ToolError(answer if isinstance(answer, str) and answer else DECLINED)


def _work(function: Callback, name: str, arguments: dict[str, Any], result: Future[str]) -> None:
    try:
        value = function(name, arguments)
        if inspect.isawaitable(value):
            value = asyncio.run(_awaited(value))
        text = _text(value)
    # Tools do what they like, SystemExit included; the model is told and all else goes on.
    except BaseException as cause:
        _settle(result, cause)
    else:
        _settle(result, text)


def _settle(result: Future[str], value: str | BaseException) -> None:
    """Give a call its result, unless it has one: it may time out in the very moment it ends."""
    with suppress(InvalidStateError):
        if isinstance(value, str):
            result.set_result(value)
        else:
            result.set_exception(value)


async def _awaited(value: Awaitable[Any]) -> Any:
    return await value


def _text(value: Any) -> str:
    """What the model reads of a result: text as it is, other values as JSON."""
    if isinstance(value, str):
        return value
    if value is None:
        raise ToolError("the tool returned nothing")
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as cause:
        raise ToolError(
            f"the tool returned a {type(value).__name__}, which is neither text nor JSON"
        ) from cause


def _arguments(call: ToolCallResponse) -> dict[str, Any]:
    try:
        value = json.loads(call.function.arguments)
    except (ValueError, RecursionError) as cause:
        raise ToolError(f"the arguments are not valid JSON: {cause}") from cause
    if not isinstance(value, dict):
        raise ToolError("the arguments must be a JSON object")
    return value


def _record(job: _Job, round_idx: int) -> ExecutedToolCall:
    error = job.result.exception()
    if error is None:
        text = job.result.result()
    elif isinstance(error, ToolError):
        text = f"ERROR: {error}"
    else:
        text = f"ERROR: {type(error).__name__}: {error}"
    if error is not None:
        log.warning("tool %s: %s", job.call.function.name, text)
    return ExecutedToolCall(
        round=round_idx,
        id=job.call.id,
        name=job.call.function.name,
        arguments=job.call.function.arguments,
        result=text,
        is_error=error is not None,
        seconds=max(0.0, job.ended - job.started),
    )


def _schema(name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    function = schema.get("function", schema)
    return {"type": "function", "function": {**function, "name": name}}
