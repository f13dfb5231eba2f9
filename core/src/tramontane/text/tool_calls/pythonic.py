"""Calls written as a Python list, ``[f(x=1), g(y="z")]``: Llama 4, and Llama 3.2 when asked to."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from typing import Any

from tramontane.text.tool_calls.events import Mark, Tools
from tramontane.text.tool_calls.grammar import json_arguments, literal, rules, signatures
from tramontane.text.tool_calls.reader import CallReader, MalformedError, Steps

_WORDS = {"true": True, "false": False, "null": None}
_CLOSING = {"(": ")", "[": "]", "{": "}"}


class Pythonic(CallReader):
    """A list of calls at the beginning of the turn, or between ``<|python_start|>`` and
    ``<|python_end|>``.

    Without the markers only the name of an offered tool tells calls from text in brackets.
    Positional arguments take the names of the tool's parameters, in order.
    """

    START = "<|python_start|>"
    END = "<|python_end|>"
    NO_CALL = r"\s*([^\s\[](.|\n)*)?"

    def read(self) -> Steps[None]:
        before = yield from self.spaces()
        if (yield from self.follows("[")):
            yield from self.attempt(self._list(only_known=True), before=before)
        else:
            self.say(before)
        while mark := (yield from self.say_until(self.START)):
            yield from self.attempt(self._marked(), before=mark)

    def _marked(self) -> Steps[None]:
        yield from self.spaces()
        yield from self._list(only_known=False)
        yield from self.spaces()
        yield from self.optional(self.END)

    def _list(self, *, only_known: bool) -> Steps[None]:
        yield from self.expect("[")
        yield from self.spaces(also=",")
        while not (yield from self.optional("]")):
            name = yield from self._name()
            if only_known and self.parameters and name not in self.parameters:
                raise MalformedError
            text = yield from self._arguments()
            sink = self.begin(name)
            sink(json.dumps(self._named(name, text), ensure_ascii=False))
            self.complete()
            yield from self.spaces(also=",")

    def _name(self) -> Steps[str]:
        name = ""
        while True:
            char = yield from self.peek()
            if not char:
                raise EOFError
            if not (char.isalnum() or char in "_.-"):
                break
            name += self._take(1)
        if not name or char != "(":
            raise MalformedError
        return name

    def _arguments(self) -> Steps[str]:
        """What stands between the brackets of a call."""
        yield from self.expect("(")
        closing, quote, text = [")"], "", ""
        while closing:
            char = yield from self.peek()
            if not char:
                raise EOFError
            text += self._take(1)
            if quote:
                if char == "\\":
                    yield from self.peek()
                    text += self._take(1)
                elif char == quote:
                    quote = ""
            elif char in "'\"":
                quote = char
            elif char in _CLOSING:
                closing.append(_CLOSING[char])
            elif char in ")]}" and closing.pop() != char:
                raise MalformedError
        return text[:-1]

    def _named(self, name: str, text: str) -> dict[str, Any]:
        try:
            call = ast.parse(f"f({text})", mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as cause:
            raise MalformedError from cause
        if not isinstance(call, ast.Call):
            raise MalformedError
        names = list((self.parameters.get(name) or {}).get("properties") or ())
        if len(call.args) > len(names):
            raise MalformedError
        values = {key: _value(node) for key, node in zip(names, call.args, strict=False)}
        for keyword in call.keywords:
            if keyword.arg is None:
                raise MalformedError
            values[keyword.arg] = _value(keyword.value)
        return values

    @classmethod
    def call_grammar(cls, tools: Tools, mark: Mark) -> str | None:
        calls = (
            f'{literal(name + "(")} {_keywords(schema)} ")"' for name, schema in signatures(tools)
        )
        return rules(
            'tool_call: "[" one_call (", " one_call)* "]"',
            "one_call: " + " | ".join(calls),
            'any_keyword: /[A-Za-z_][A-Za-z0-9_]*/ "=" ' + json_arguments({}),
        )


def _keywords(schema: Mapping[str, Any]) -> str:
    """Lark for the arguments of one tool, in the schema's order, or for any where it names none.
    Their values are written as in JSON, which is Python but for three words."""
    properties = schema.get("properties") or {}
    if not properties:
        closed = schema.get("additionalProperties") is False
        return "" if closed else '(any_keyword (", " any_keyword)*)?'
    needed = set(schema.get("required") or ())
    bodies = [
        (key, f"{literal(key + '=')} {json_arguments(value)}") for key, value in properties.items()
    ]
    # Which argument comes first decides where the commas are.
    ways = []
    for first, (key, body) in enumerate(bodies):
        later = (f'(", " {b}){"" if k in needed else "?"}' for k, b in bodies[first + 1 :])
        ways.append(" ".join([body, *later]))
        if key in needed:
            return f"({' | '.join(ways)})"
    return f"({' | '.join(ways)})?"


def _value(node: ast.expr) -> Any:
    """A literal, with JSON's words beside Python's."""
    if isinstance(node, ast.Name) and node.id in _WORDS:
        return _WORDS[node.id]
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        return {_key(key): _value(item) for key, item in zip(node.keys, node.values, strict=True)}
    try:
        value = ast.literal_eval(node)
        if isinstance(value, str):  # JSON writes a character beyond 16 bits as two
            value = value.encode("utf-16", "surrogatepass").decode("utf-16")
        json.dumps(value)
    except (ValueError, TypeError, RecursionError) as cause:
        raise MalformedError from cause
    return value


def _key(node: ast.expr | None) -> str:
    key = None if node is None else _value(node)
    if not isinstance(key, str):
        raise MalformedError
    return key
