"""`CallReader`: the base of every format. Its subclasses read text as if all of it were there.

A format is written as generators that ask for text with ``yield from`` and are suspended while
it has not arrived; so each reads top-down like its grammar, and how the text is divided cannot
change what it says.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from typing import Any, ClassVar, TypeVar

from tramontane.text.tool_calls.events import (
    CallArguments,
    CallBegun,
    CallBroken,
    Mark,
    Said,
    Thought,
    Tools,
    TurnEvent,
)

SPACE = " \t\r\n"

T = TypeVar("T")
Steps = Generator[None, None, T]
"""A part of a reader: suspended whenever it needs text that is not there yet."""

Sink = Callable[[str], None]


class MalformedError(Exception):
    """What was taken for a call is none."""


class CallReader:
    """Text in, events out; see `tramontane.text.tool_calls.events.ToolFormat`.

    Outside of calls, spaces wait for what follows: those around calls belong to no text.

    Subclasses define `read`, which consumes everything with the methods below it.
    """

    TRIGGER: ClassVar[str] = ""
    NO_CALL: ClassVar[str] = ""

    def __init__(self, tools: Tools = ()) -> None:
        self.parameters = {name: schema for name, schema in map(_signature, tools) if name}
        self._text = ""
        self._position = 0
        self._ended = False
        self._events: list[TurnEvent] = []
        self._num_calls = 0
        self._open: int | None = None  # a call that has begun and is not complete
        self._raw: list[str] | None = None  # what was read for it; None outside of calls
        self._space = ""
        self._said = False
        self._called = False  # since the last text
        self._steps: Steps[None] | None = self._everything()
        next(self._steps)

    def push(self, text: str) -> list[TurnEvent]:
        self._text = self._text[self._position :] + text
        self._position = 0
        return self._advance()

    def flush(self) -> list[TurnEvent]:
        self._ended = True
        events = self._advance()
        if self._space and not self._called:
            events.append(Said(self._space))
        self._space = ""
        return events

    @classmethod
    def call_grammar(cls, tools: Tools, mark: Mark) -> str | None:
        return None

    @classmethod
    def turn_grammar(cls, mark: Mark, *, endings: Sequence[str]) -> str | None:
        return None

    def _advance(self) -> list[TurnEvent]:
        if self._steps is not None:
            try:
                next(self._steps)
            except StopIteration:
                self._steps = None
        events, self._events = self._events, []
        return events

    def _everything(self) -> Steps[None]:
        yield from self.more()
        with suppress(EOFError):
            yield from self.read()
        while not self._ended or self._position < len(self._text):
            self.say(self._take(len(self._text) - self._position))
            yield

    # For subclasses -------------------------------------------------------------------------

    def read(self) -> Steps[None]:
        """Consume the whole answer."""
        raise NotImplementedError

    def new_id(self) -> str:
        """An id for the next call."""
        return f"call-{uuid.uuid4()}"

    def say(self, text: str) -> None:
        """Text outside of calls."""
        text = self._space + text
        said = text.rstrip(SPACE)
        self._space = text[len(said) :]
        if said:
            if self._called and not self._said:
                said = said.lstrip(SPACE)
            self._said, self._called = True, False
            self._events.append(Said(said))

    def think(self, text: str) -> None:
        """Text of the reasoning."""
        if text:
            self._events.append(Thought(text))

    def begin(self, name: str) -> Sink:
        """A call begins; returns what takes the text of its arguments."""
        self._open = index = self._num_calls
        self._num_calls += 1
        self._events.append(CallBegun(index, self.new_id(), name))
        return lambda text: self._events.append(CallArguments(index, text))

    def complete(self) -> None:
        """The call that has begun stands, whatever follows."""
        self._open = None
        self._called = True
        self._raw = []
        if not self._said:
            self._space = ""

    def attempt(self, body: Steps[None], before: str = "") -> Steps[None]:
        """Read ``body``, one call or several. What of it is no complete call becomes text.

        Args:
            before: text already consumed that belongs to the first call.
        """
        self._raw = [before]
        try:
            yield from body
        except (MalformedError, EOFError):
            if self._open is not None:
                self._events.append(CallBroken(self._open))
                self._open = None
            raw, self._raw = "".join(self._raw or ()), None
            self.say(raw)
        self._raw = None

    # Reading: each waits for the text it needs, and raises EOFError when it will never come ---

    def more(self) -> Steps[None]:
        """Wait for more text."""
        if self._ended:
            raise EOFError
        yield

    def peek(self, size: int = 1) -> Steps[str]:
        """The next ``size`` characters, not consumed; fewer at the end of the text."""
        while len(self._text) - self._position < size and not self._ended:
            yield
        return self._text[self._position : self._position + size]

    def follows(self, text: str) -> Steps[bool]:
        """Whether ``text`` comes next; consumes nothing, and waits no longer than it must."""
        while True:
            there = self._text[self._position : self._position + len(text)]
            if there == text or not text.startswith(there):
                return there == text
            if self._ended:
                return False
            yield

    def optional(self, text: str) -> Steps[bool]:
        """Consume ``text`` if it comes next."""
        there = yield from self.follows(text)
        if there:
            self._take(len(text))
        return there

    def expect(self, text: str) -> Steps[None]:
        """Consume ``text``, which must come next."""
        if not (yield from self.optional(text)):
            if self._ended and text.startswith(self._text[self._position :]):
                self._take(len(self._text) - self._position)
                raise EOFError
            raise MalformedError

    def spaces(self, also: str = "") -> Steps[str]:
        """Consume white space, and characters of ``also``."""
        taken = ""
        while True:
            char = yield from self.peek()
            if not char or char not in SPACE + also:
                return taken
            taken += self._take(1)

    def until(self, *marks: str, sink: Sink | None = None) -> Steps[tuple[str, str]]:
        """Consume text up to the first of ``marks``, and that mark.

        Args:
            sink: takes the text as it becomes certain; otherwise it is returned.

        Returns:
            The text, unless a sink took it, and the mark. At the end of the text it raises
            EOFError, after a sink has had everything.
        """
        parts: list[str] = []
        put = sink or parts.append
        while True:
            rest = self._text[self._position :]
            found = [(at, -len(mark), mark) for mark in marks if (at := rest.find(mark)) >= 0]
            if found:
                at, _, mark = min(found)
                put(self._take(at))
                self._take(len(mark))
                return "".join(parts), mark
            keep = 0 if self._ended else max(overlap(rest, mark) for mark in marks)
            if len(rest) > keep:
                put(self._take(len(rest) - keep))
            yield from self.more()

    def say_until(self, *marks: str) -> Steps[str | None]:
        """Text outside of calls up to a mark, which is consumed; None at the end."""
        try:
            _, mark = yield from self.until(*marks, sink=self.say)
        except EOFError:
            return None
        return mark

    def json_string(self) -> Steps[str]:
        """A JSON string, decoded."""
        if (yield from self.peek()) != '"':
            raise MalformedError
        value = yield from self.json_value()
        assert isinstance(value, str)
        return value

    def json_value(self, sink: Sink | None = None) -> Steps[Any]:
        """A JSON value, decoded; ``sink`` takes its text as it comes."""
        parts: list[str] = []
        depth, in_string, escaped, scalar = 0, False, False, False
        while True:
            start = at = self._position
            done = False
            while at < len(self._text) and not done:
                char = self._text[at]
                if in_string:
                    if escaped:
                        escaped = False
                    elif char == "\\":
                        escaped = True
                    elif char == '"':
                        in_string = False
                        done = depth == 0
                elif scalar and (char in ",]}" or char in SPACE or char == "<"):
                    done = True
                    break
                elif char == '"' and not scalar:
                    in_string = True
                elif char in "{[" and not scalar:
                    depth += 1
                elif char in "}]":
                    depth -= 1
                    if depth < 0:
                        raise MalformedError
                    done = depth == 0
                elif depth == 0:
                    scalar = True
                at += 1
            if at > start:
                text = self._take(at - start)
                parts.append(text)
                if sink is not None:
                    sink(text)
            if done or (scalar and self._ended):
                return _decoded("".join(parts))
            yield from self.more()

    def _take(self, size: int) -> str:
        text = self._text[self._position : self._position + size]
        self._position += len(text)
        if self._raw is not None:
            self._raw.append(text)
        return text


def overlap(text: str, mark: str) -> int:
    """Length of the longest end of ``text`` that begins ``mark``."""
    for length in range(min(len(text), len(mark) - 1), 0, -1):
        if mark.startswith(text[-length:]):
            return length
    return 0


def _decoded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as cause:
        raise MalformedError from cause


def _signature(tool: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    function = tool.get("function", tool)
    if not isinstance(function, Mapping):
        return "", {}
    parameters = function.get("parameters")
    return str(function.get("name", "")), parameters if isinstance(parameters, Mapping) else {}
