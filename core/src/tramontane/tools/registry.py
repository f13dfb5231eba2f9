"""`ToolRegistry`: the tools of a runner, and running them."""

from __future__ import annotations

import asyncio
import contextvars
import copy
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

    Sources may gain and lose tools while they run. A name belongs to whoever had it first; a tool
    that comes later by the same name is refused, and `status` says so.

    Args:
        callbacks: ``f(name, arguments)`` by tool name. Such a tool is offered by requests that
            carry its schema.
        sources: tools that are offered to every request.
        approval: asked before each call with name and arguments. False declines it, a text
            declines it and says why.
        timeout_secs: how long a call may take; None for as long as it likes.

    Raises:
        ValidationError: two tools have one name from the start.
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
        self._lock = threading.Lock()
        # Name → who had it first, for good: a tool that is away for a while finds its name again.
        self._claims: dict[str, Any] = dict.fromkeys(self._callbacks, "tool_callbacks")
        self._refused: dict[tuple[str, str], str] = {}
        self._owners()
        for reason in self._refused.values():
            self.close()
            raise ValidationError(f"{reason}: rename one, or give a source a prefix")
        self._early = frozenset(self._claims)

    def __bool__(self) -> bool:
        return bool(self._callbacks or self._sources)

    def __contains__(self, name: object) -> bool:
        return name in self._callbacks or name in self._owners()

    def joined(self, source: ToolSource) -> ToolRegistry:
        """These tools and one more source, for one request.

        Raises:
            ValidationError: one of its tools has the name of one that has been there all the time.
        """
        twin = self._giving(source.tools, source, source.name)
        twin._sources = [*self._sources, source]
        twin._early = self._early | set(source.tools)
        return twin

    def beside(self, request: ChatCompletionRequest) -> ToolRegistry:
        """These tools but for late ones whose name a request gives to a tool of its own.

        Raises:
            ValidationError: it has a tool of the name of one that has been there all the time.
        """
        if request.tool_choice is ToolChoice.NoTools:
            return self
        names = set(_names(request)) - set(self._callbacks)
        taken = names & set(self._owners())
        return self._giving(taken, request, "tool_schemas") if taken else self

    def offered(self, request: ChatCompletionRequest) -> list[dict[str, Any]]:
        """Schemas of a request's tools: its own, then those of the sources."""
        own = list(request.tool_schemas or ())
        if request.tool_choice is ToolChoice.NoTools:
            return own
        names = set(_names(request))
        found = self._owners().items()
        return own + [_schema(name, s.tools[name]) for name, s in found if name not in names]

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
        """How what the sources depend on is doing, by its name. A tool that was refused is among
        ``refused``, with the reason, of the one that has it."""
        found: dict[str, dict[str, Any]] = {}
        for source in self._sources:
            parts = {name: dict(part) for name, part in source.status().items()}
            for (owner, tool), reason in self._refused.items():
                if owner != source.name:
                    continue
                holders = [p for p in parts.values() if tool in p.get("tools", ())]
                part = holders[0] if holders else parts.setdefault(source.name, {})
                part["tools"] = [name for name in part.get("tools", ()) if name != tool]
                part["refused"] = {**part.get("refused", {}), tool: reason}
            found |= parts
        return found

    def close(self) -> None:
        """Release what the sources hold."""
        for source in self._sources:
            try:
                source.close()
            except Exception:
                log.exception("tools of %s could not be closed", source.name)

    def _owners(self) -> dict[str, ToolSource]:
        """Tool → its source, as things are now."""
        there = [(source, list(source.tools)) for source in self._sources]  # may make us wait
        owners: dict[str, ToolSource] = {}
        refused: dict[tuple[str, str], str] = {}
        with self._lock:
            for source, names in there:
                for name in names:
                    first = self._claims.setdefault(name, source)
                    if first is source:
                        owners[name] = source
                        continue
                    who = first if isinstance(first, str) else first.name
                    reason = f"{who} and {source.name} both have a tool called {name!r}"
                    refused[source.name, name] = reason
                    if (source.name, name) not in self._refused:
                        log.warning("a tool is refused: %s", reason)
            self._refused = refused
        return owners

    def _giving(self, names: Iterable[str], owner: Any, called: str) -> ToolRegistry:
        """A twin for one request, in which late tools have lost ``names`` to ``owner``."""
        owners = self._owners()
        twin = copy.copy(self)
        twin._claims, twin._refused = dict(self._claims), dict(self._refused)
        for name in names:
            if name in self._early:
                who = owners[name].name if name in owners else "the runner"
                raise ValidationError(
                    f"{called} has a tool called {name!r}, and so has {who}: rename one of them"
                )
            twin._claims[name] = owner if isinstance(owner, ToolSource) else called
        return twin

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


def _names(request: ChatCompletionRequest) -> list[str]:
    return [tool["function"]["name"] for tool in request.tool_schemas or ()]


def _schema(name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    function = schema.get("function", schema)
    return {"type": "function", "function": {**function, "name": name}}
