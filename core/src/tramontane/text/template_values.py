"""What a chat template may see: plain values, and past tool calls in the form templates read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tramontane.errors import ValidationError

REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
"""Names under which clients and templates know a past turn's reasoning."""


class Arguments(dict[str, Any]):
    """A tool call's arguments that the client sent as JSON text.

    To a template they are an object; one that prints or concatenates them gets the text.
    """

    def __init__(self, text: str, value: Mapping[str, Any]) -> None:
        super().__init__(value)
        self._text = text

    def __str__(self) -> str:
        return self._text

    def __add__(self, other: str) -> str:
        return self._text + other

    def __radd__(self, other: str) -> str:
        return other + self._text


def plain(value: Any, where: str) -> Any:
    """A copy of ``value`` in plain JSON types.

    Templates come from strangers: an object with methods must not reach them.

    Args:
        value: nested mappings, sequences, strings, numbers, booleans and None.
        where: how errors call it.

    Raises:
        ValidationError: something else is inside.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, Mapping):
        return {plain(k, f"key of {where}"): plain(v, f"{where}[{k!r}]") for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    raise ValidationError(
        f"{where} is a {type(value).__name__}; a chat template can be given only strings, numbers, "
        "booleans, None, lists and dicts"
    )


def template_messages(
    messages: Sequence[Mapping[str, Any]], *, null_content: bool = True
) -> list[dict[str, Any]]:
    """Copies of chat messages for a template.

    JSON text in ``tool_calls[…].function.arguments`` becomes an object. Reasoning of a past turn
    is there under ``reasoning_content`` and ``thinking``, whichever name it came by.

    Args:
        messages: the messages.
        null_content: whether ``content`` may be None, as clients send it beside tool calls;
            otherwise the key is left out then.

    Raises:
        ValidationError: a message is no mapping or holds values templates cannot be given.
    """
    prepared = []
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise ValidationError(f"messages[{index}] must be a dict, not {type(message).__name__}")
        copy = plain(message, f"messages[{index}]")
        if not null_content and copy.get("content", "") is None:
            del copy["content"]
        reasoning = next((copy[k] for k in REASONING_KEYS if copy.get(k) is not None), None)
        if reasoning is not None:
            copy = {"thinking": reasoning, **copy, "reasoning_content": reasoning}
        for call in copy.get("tool_calls") or ():
            # Some clients leave out the "function" level.
            holder = call.get("function", call) if isinstance(call, dict) else None
            if isinstance(holder, dict) and isinstance(holder.get("arguments"), str):
                holder["arguments"] = _decoded(holder["arguments"])
        prepared.append(copy)
    return prepared


def _decoded(text: str) -> str | Arguments:
    """The object in a JSON text; the text itself if a model once wrote something else."""
    try:
        value = json.loads(text) if text.strip() else {}
    except (json.JSONDecodeError, RecursionError):
        return text
    return Arguments(text, value) if isinstance(value, dict) else text
