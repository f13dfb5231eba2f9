"""Calls between special tokens: DeepSeek V3 and R1, DeepSeek V3.1, Kimi K2, Mistral from v11 on."""

from __future__ import annotations

import re

from tramontane.text.tool_calls.events import Mark, Tools
from tramontane.text.tool_calls.grammar import json_arguments, literal, rules, signatures
from tramontane.text.tool_calls.json_calls import short_id
from tramontane.text.tool_calls.reader import CallReader, MalformedError, Steps


class _Section(CallReader):
    """``SECTION (BEGIN head SEPARATOR arguments END)* SECTION_END``; the outer markers may be
    missing."""

    SECTION = ""
    SECTION_END = ""
    BEGIN = ""
    SEPARATOR = ""
    END = ""

    def read(self) -> Steps[None]:
        while mark := (yield from self.say_until(self.SECTION, self.BEGIN)):
            yield from self.attempt(self._calls(mark), before=mark)

    def _calls(self, mark: str) -> Steps[None]:
        begun = mark == self.BEGIN
        yield from self.spaces()
        while begun or (yield from self.optional(self.BEGIN)):
            begun = False
            head, _ = yield from self.until(self.SEPARATOR)
            yield from self.body(head)
            yield from self.spaces()
            yield from self.optional(self.END)
            yield from self.spaces()
        yield from self.optional(self.SECTION_END)

    def body(self, head: str) -> Steps[None]:
        """What follows the separator."""
        yield from self.arguments(head.strip())

    def arguments(self, name: str) -> Steps[None]:
        """The arguments of a call of ``name``, an object; the call is complete then."""
        if not name or "\n" in name:
            raise MalformedError
        yield from self.spaces()
        if (yield from self.peek()) != "{":
            yield from self.expect("{")
        yield from self.json_value(self.begin(name))
        self.complete()

    @classmethod
    def call_grammar(cls, tools: Tools, mark: Mark) -> str | None:
        calls = [
            f"{mark(cls.BEGIN)} {cls.head_grammar(name, mark)} {json_arguments(schema)} "
            f"{cls.tail_grammar()} {mark(cls.END)}"
            for name, schema in signatures(tools)
        ]
        body = f"{mark(cls.SECTION)} a_call+ {mark(cls.SECTION_END)}"
        return rules(f"tool_call: {body}", "a_call: " + " | ".join(calls))

    @classmethod
    def head_grammar(cls, name: str, mark: Mark) -> str:
        """Lark for what stands between ``BEGIN`` and the arguments."""
        return f"{literal(name)} {mark(cls.SEPARATOR)}"

    @classmethod
    def tail_grammar(cls) -> str:
        """Lark for what stands between the arguments and ``END``."""
        return ""


class DeepSeekV31(_Section):
    """``<｜tool▁call▁begin｜>NAME<｜tool▁sep｜>{…}<｜tool▁call▁end｜>``"""

    SECTION = TRIGGER = "<｜tool▁calls▁begin｜>"
    SECTION_END = "<｜tool▁calls▁end｜>"
    BEGIN = "<｜tool▁call▁begin｜>"
    SEPARATOR = "<｜tool▁sep｜>"
    END = "<｜tool▁call▁end｜>"


class DeepSeekV3(DeepSeekV31):
    """``<｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME``, then a code block with the arguments."""

    def body(self, head: str) -> Steps[None]:
        name, _ = yield from self.until("\n")
        yield from self.spaces()
        fenced = yield from self.optional("```json")
        yield from self.arguments(name.strip())
        if fenced:
            yield from self.spaces()
            yield from self.optional("```")

    @classmethod
    def head_grammar(cls, name: str, mark: Mark) -> str:
        return f'"function" {mark(cls.SEPARATOR)} {literal(name + chr(10) + "```json" + chr(10))}'

    @classmethod
    def tail_grammar(cls) -> str:
        return literal("\n```")


class Kimi(_Section):
    """``<|tool_call_begin|>functions.NAME:0<|tool_call_argument_begin|>{…}<|tool_call_end|>``"""

    SECTION = TRIGGER = "<|tool_calls_section_begin|>"
    SECTION_END = "<|tool_calls_section_end|>"
    BEGIN = "<|tool_call_begin|>"
    SEPARATOR = "<|tool_call_argument_begin|>"
    END = "<|tool_call_end|>"

    def body(self, head: str) -> Steps[None]:
        yield from self.arguments(re.sub(r":\d+$", "", head.strip()).removeprefix("functions."))

    @classmethod
    def head_grammar(cls, name: str, mark: Mark) -> str:
        return f"{literal(f'functions.{name}:')} /[0-9]+/ {mark(cls.SEPARATOR)}"


class MistralArgs(CallReader):
    """``[TOOL_CALLS]NAME[CALL_ID]ID[ARGS]{…}``, the id being optional."""

    OPEN = TRIGGER = "[TOOL_CALLS]"
    CALL_ID = "[CALL_ID]"
    ARGS = "[ARGS]"

    def read(self) -> Steps[None]:
        while mark := (yield from self.say_until(self.OPEN)):
            yield from self.attempt(self._call(), before=mark)

    def _call(self) -> Steps[None]:
        head, _ = yield from self.until(self.ARGS)
        name = head.partition(self.CALL_ID)[0].strip()
        if not name or "\n" in name:
            raise MalformedError
        yield from self.spaces()
        if (yield from self.peek()) != "{":
            yield from self.expect("{")
        yield from self.json_value(self.begin(name))
        self.complete()

    def new_id(self) -> str:
        return short_id()

    @classmethod
    def call_grammar(cls, tools: Tools, mark: Mark) -> str | None:
        calls = [
            f"{mark(cls.OPEN)} {literal(name)} {mark(cls.ARGS)} {json_arguments(schema)}"
            for name, schema in signatures(tools)
        ]
        return rules("tool_call: a_call+", "a_call: " + " | ".join(calls))
