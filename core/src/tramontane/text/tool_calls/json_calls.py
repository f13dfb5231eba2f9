"""Calls written as JSON: ``{"name": …, "arguments": {…}}``, alone or in a list, behind a marker.

Hermes and Qwen (``<tool_call>…</tool_call>``; SmolLM3 and Granite 4 write it too), Granite 3 and
Phi-4 (``<|tool_call|>[…]``), Mistral up to Nemo (``[TOOL_CALLS][…]``), Llama 3
(``<|python_tag|>{…}``, or the object alone).
"""

from __future__ import annotations

import json
import random
import string
from typing import Any

from attrs import define

from tramontane.text.tool_calls.events import Mark, Tools
from tramontane.text.tool_calls.grammar import json_call, one_or_more, rules
from tramontane.text.tool_calls.reader import CallReader, MalformedError, Sink, Steps

NAMES = ("name", "function", "tool_name")
ARGUMENTS = ("arguments", "parameters")


@define
class _Call:
    """What is known of a call while its object is read."""

    name: str | None = None
    arguments: Any = None
    told: bool = False


class JsonCalls(CallReader):
    """The part that all of them share.

    Attributes:
        ONLY_KNOWN: take an object for a call only if it names an offered tool.
    """

    ONLY_KNOWN = False

    def call_or_list(self) -> Steps[None]:
        """One call, or a list of them."""
        yield from self.spaces()
        if not (yield from self.optional("[")):
            yield from self.call()
            return
        yield from self.spaces(also=",")
        while not (yield from self.optional("]")):
            yield from self.call()
            yield from self.spaces(also=",")

    def call(self) -> Steps[None]:
        """One object. Arguments are passed on as they come, once the name is known."""
        call = _Call()
        yield from self._members(call)
        if call.name is None:
            raise MalformedError
        if not call.told:
            self._begin(call.name)(_object_text(call.arguments))
        self.complete()

    def _members(self, call: _Call) -> Steps[None]:
        yield from self.expect("{")
        yield from self.spaces(also=",")
        while not (yield from self.optional("}")):
            key = yield from self.json_string()
            yield from self.spaces()
            yield from self.expect(":")
            yield from self.spaces()
            nested = (yield from self.peek()) == "{"
            if key == "function" and nested:
                yield from self._members(call)
            elif key in NAMES:
                call.name = yield from self.json_string()
            elif key in ARGUMENTS and nested and call.name is not None:
                yield from self.json_value(self._begin(call.name))
                call.told = True
            elif key in ARGUMENTS:
                call.arguments = yield from self._whole_arguments()
            else:
                yield from self.json_value()
            yield from self.spaces(also=",")

    def _whole_arguments(self) -> Steps[Any]:
        """Arguments that come before the name, or as a string, whose quotes some models forget
        to escape."""
        if (yield from self.peek(3)) == '"{"':
            yield from self.expect('"')
            value = yield from self.json_value()
            yield from self.expect('"')
            return value
        value = yield from self.json_value()
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value) if value.strip() else {}
        except (ValueError, RecursionError) as cause:
            raise MalformedError from cause

    def _begin(self, name: str) -> Sink:
        if self.ONLY_KNOWN and self.parameters and name not in self.parameters:
            raise MalformedError
        return self.begin(name)


def _object_text(arguments: Any) -> str:
    arguments = {} if arguments is None else arguments
    if not isinstance(arguments, dict):
        raise MalformedError
    return json.dumps(arguments, ensure_ascii=False)


class _Marked(JsonCalls):
    """Calls between ``OPEN`` and, unless it is empty, ``CLOSE``."""

    OPEN = ""
    CLOSE = ""
    LISTS = True
    """Whether the family writes lists; all of them are read in either form."""

    def read(self) -> Steps[None]:
        while mark := (yield from self.say_until(self.OPEN)):
            yield from self.attempt(self._calls(), before=mark)

    def _calls(self) -> Steps[None]:
        yield from self.call_or_list()
        if self.CLOSE:
            yield from self.spaces()
            yield from self.optional(self.CLOSE)

    @classmethod
    def call_grammar(cls, tools: Tools, mark: Mark) -> str | None:
        close = mark(cls.CLOSE) if cls.CLOSE else ""
        if cls.LISTS:
            body = f'{mark(cls.OPEN)} "[" one_call (", " one_call)* "]" {close}'
            return rules(json_call("one_call", tools), f"tool_call: {body}")
        body = f'{mark(cls.OPEN)} "\\n" one_call "\\n" {close}'
        return rules(json_call("one_call", tools), one_or_more(body))


class Hermes(_Marked):
    """``<tool_call>\\n{"name": …, "arguments": {…}}\\n</tool_call>``"""

    OPEN = TRIGGER = "<tool_call>"
    CLOSE = "</tool_call>"
    LISTS = False


class Granite(_Marked):
    """``<|tool_call|>[{"name": …, "arguments": {…}}, …]``"""

    OPEN = TRIGGER = "<|tool_call|>"


class Phi4(_Marked):
    """``<|tool_call|>[{"name": …, "arguments": {…}}, …]<|/tool_call|>``"""

    OPEN = TRIGGER = "<|tool_call|>"
    CLOSE = "<|/tool_call|>"


class Mistral(_Marked):
    """``[TOOL_CALLS][{"name": …, "arguments": {…}, "id": …}, …]``"""

    OPEN = TRIGGER = "[TOOL_CALLS]"

    def new_id(self) -> str:
        return short_id()


def short_id() -> str:
    """Nine letters and digits: Mistral's templates refuse any other id."""
    return "".join(random.choices(string.ascii_letters + string.digits, k=9))


class Llama(JsonCalls):
    """``{"name": …, "parameters": {…}}`` at the beginning of the turn, several with ``;`` between
    them, or anything like it behind ``<|python_tag|>``.

    Without the marker only the name of an offered tool tells a call from an answer in JSON.
    """

    TAG = "<|python_tag|>"
    NO_CALL = r"\s*([^\s{](.|\n)*)?"

    def read(self) -> Steps[None]:
        yield from self._bare()
        while mark := (yield from self.say_until(self.TAG)):
            self.ONLY_KNOWN = False
            yield from self.attempt(self.call_or_list(), before=mark)
            yield from self._bare()

    def _bare(self) -> Steps[None]:
        self.ONLY_KNOWN = True
        while True:
            before = yield from self.spaces(also=";,") if self._called else self.spaces()
            if not (yield from self.follows("{")):
                self.say(before)
                return
            yield from self.attempt(self.call_or_list(), before=before)

    @classmethod
    def call_grammar(cls, tools: Tools, mark: Mark) -> str | None:
        return rules(json_call("tool_call", tools, arguments="parameters"))
