"""Lark rules that the formats' grammars are put together from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tramontane.text.tool_calls.events import Tools


def rules(*parts: str) -> str:
    """Several rules, one below the other."""
    return "\n".join(parts)


def literal(text: str) -> str:
    """Lark for this very text."""
    return json.dumps(text, ensure_ascii=False)


def one_or_more(body: str) -> str:
    """The entry rule for calls that follow each other, each on a line of its own."""
    return f'tool_call: a_call ("\\n" a_call)*\na_call: {body}'


def json_call(rule: str, tools: Tools, *, arguments: str = "arguments") -> str:
    """A rule for ``{"name": NAME, "arguments": ARGUMENTS}`` of one of the tools."""
    calls = []
    for name, schema in signatures(tools):
        head = f'{{"name": {json.dumps(name, ensure_ascii=False)}, "{arguments}": '
        calls.append(f'{literal(head)} {json_arguments(schema)} "}}"')
    return f"{rule}: " + " | ".join(calls)


def json_arguments(schema: Mapping[str, Any]) -> str:
    """Lark for the JSON text of arguments."""
    return f"%json {json.dumps(schema, ensure_ascii=False)}"


def signatures(tools: Tools) -> list[tuple[str, Mapping[str, Any]]]:
    """Name and schema of the arguments of each tool; any object, where it states none."""
    found = []
    for tool in tools:
        function = tool.get("function", tool)
        schema = function.get("parameters") or {"type": "object"}
        found.append((str(function["name"]), schema))
    return found
