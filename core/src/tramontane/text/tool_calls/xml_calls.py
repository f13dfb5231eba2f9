"""Calls with a tag for each argument: Qwen3-Coder and GLM-4.

The values are bare text; `typed` gives them the type that the tool's schema states.
"""

from __future__ import annotations

import json
from typing import Any

from tramontane.text.tool_calls.events import Mark, Tools
from tramontane.text.tool_calls.grammar import literal, one_or_more, rules, signatures
from tramontane.text.tool_calls.reader import CallReader, MalformedError, Sink, Steps
from tramontane.text.tool_calls.typed import parameter, typed


class _Tagged(CallReader):
    """What both share: arguments told one at a time."""

    TRIGGER = "<tool_call>"

    def put(self, sink: Sink, name: str, key: str, text: str, *, first: bool) -> None:
        """Tell one argument."""
        value = typed(text, parameter(self.parameters.get(name), key))
        pair = f"{json.dumps(key, ensure_ascii=False)}: {json.dumps(value, ensure_ascii=False)}"
        sink(pair if first else ", " + pair)


class QwenCoder(_Tagged):
    """``<tool_call><function=NAME><parameter=KEY>\\nVALUE\\n</parameter>…</function></tool_call>``,
    the outer tags being optional."""

    def read(self) -> Steps[None]:
        while mark := (yield from self.say_until("<tool_call>", "<function=")):
            yield from self.attempt(self._call(mark), before=mark)

    def _call(self, mark: str) -> Steps[None]:
        if mark == "<tool_call>":
            yield from self.spaces()
            yield from self.expect("<function=")
        name, _ = yield from self.until(">")
        if not name.strip() or "\n" in name:
            raise MalformedError
        name = name.strip()
        sink = self.begin(name)
        sink("{")
        first = True
        yield from self.spaces()
        while not (yield from self.optional("</function>")):
            yield from self.expect("<parameter=")
            key, _ = yield from self.until(">")
            text, _ = yield from self.until("</parameter>")
            self.put(sink, name, key.strip(), _unwrapped(text), first=first)
            first = False
            yield from self.spaces()
        sink("}")
        self.complete()
        yield from self.spaces()
        yield from self.optional("</tool_call>")

    @classmethod
    def call_grammar(cls, tools: Tools, mark: Mark) -> str | None:
        calls: list[str] = []
        parts: list[str] = []
        for number, (name, schema) in enumerate(signatures(tools)):
            body = _parameters(
                schema, f"arg_{number}", parts, before="<parameter={}>\n", after="\n</parameter>\n"
            )
            calls.append(f'{literal(f"<function={name}>" + chr(10))} {body} "</function>"')
        outer = f'{mark("<tool_call>")} "\\n" one_call "\\n" {mark("</tool_call>")}'
        return rules(one_or_more(outer), "one_call: " + " | ".join(calls), *parts)


class Glm(_Tagged):
    """``<tool_call>NAME\\n<arg_key>KEY</arg_key>\\n<arg_value>VALUE</arg_value>\\n…</tool_call>``"""

    def read(self) -> Steps[None]:
        while mark := (yield from self.say_until("<tool_call>")):
            yield from self.attempt(self._call(), before=mark)

    def _call(self) -> Steps[None]:
        head, mark = yield from self.until("<arg_key>", "</tool_call>")
        name = head.strip()
        if not name or any(char in name for char in "\n{<"):
            raise MalformedError
        sink = self.begin(name)
        sink("{")
        first = True
        while mark == "<arg_key>":
            key, _ = yield from self.until("</arg_key>")
            yield from self.spaces()
            yield from self.expect("<arg_value>")
            text, _ = yield from self.until("</arg_value>")
            self.put(sink, name, key.strip(), text, first=first)
            first = False
            yield from self.spaces()
            mark = "<arg_key>" if (yield from self.optional("<arg_key>")) else ""
        sink("}")
        if not mark:
            yield from self.expect("</tool_call>")
        self.complete()

    @classmethod
    def call_grammar(cls, tools: Tools, mark: Mark) -> str | None:
        calls: list[str] = []
        parts: list[str] = []
        for number, (name, schema) in enumerate(signatures(tools)):
            body = _parameters(
                schema,
                f"arg_{number}",
                parts,
                before="<arg_key>{}</arg_key>\n<arg_value>",
                after="</arg_value>\n",
            )
            calls.append(f"{literal(name + chr(10))} {body}")
        outer = f"{mark('<tool_call>')} one_call {mark('</tool_call>')}"
        return rules(one_or_more(outer), "one_call: " + " | ".join(calls), *parts)


def _unwrapped(text: str) -> str:
    """Without the line break at either end that belongs to the tags."""
    return text.removeprefix("\n").removesuffix("\n")


def _parameters(schema: Any, prefix: str, parts: list[str], *, before: str, after: str) -> str:
    """Lark for the parameters of one tool, in the schema's order, or for any where it names none;
    rules for the values go to ``parts``."""
    properties = schema.get("properties") or {}
    if not properties and schema.get("additionalProperties") is not False:
        head, tail = map(literal, before.split("{}"))
        parts.append(f"{prefix}: {head} /[^<>\\n]+/ {tail} {prefix}_text")
        parts.append(f"{prefix}_text[suffix={literal(after)}]: /(.|\\n)*/")
        return f"{prefix}*"
    required = set(schema.get("required") or ())
    sequence = []
    for number, (key, value) in enumerate(properties.items()):
        rule = f"{prefix}_{number}"
        head = literal(before.format(key))
        words = _words(value)
        if words:
            body = f"{head} ({' | '.join(map(literal, words))}) {literal(after)}"
        elif _is_text(value):
            parts.append(f"{rule}[suffix={literal(after)}]: /(.|\\n)*/")
            body = f"{head} {rule}"
        else:
            body = f"{head} %json {json.dumps(value, ensure_ascii=False)} {literal(after)}"
        sequence.append(body if key in required else f"({body})?")
    return " ".join(sequence)


def _words(schema: Any) -> list[str]:
    """The texts a value must be one of; none if it need not."""
    values = schema.get("enum") if isinstance(schema, dict) else None
    texts = values if isinstance(values, list) else []
    return texts if all(isinstance(text, str) for text in texts) else []


def _is_text(schema: Any) -> bool:
    return not isinstance(schema, dict) or schema.get("type", "string") == "string"
