"""Arguments that a model writes as bare text, given the type that the tool's schema states."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_WORDS: dict[str, dict[str, Any]] = {
    "boolean": {"true": True, "false": False},
    "null": {"null": None, "none": None},
}
_CLASSES: dict[str, tuple[type, ...]] = {
    "integer": (int,),
    "number": (int, float),
    "object": (dict,),
    "array": (list,),
}
_LAST = {"string": 1}


def typed(text: str, schema: Any) -> Any:
    """The value that ``text`` stands for.

    Args:
        schema: JSON schema of the parameter; without a type in it the text stays text.

    Returns:
        The first of the schema's types that the text can be read as, strings last; the text
        itself when it is none of them.
    """
    for kind in sorted(_types(schema), key=lambda kind: _LAST.get(kind, 0)):
        if kind == "string":
            return text
        try:
            return _read(text.strip(), kind)
        except (ValueError, RecursionError):
            continue
    return text


def parameter(parameters: Mapping[str, Any] | None, name: str) -> Any:
    """The schema of one parameter, or None."""
    properties = (parameters or {}).get("properties")
    return properties.get(name) if isinstance(properties, Mapping) else None


def _types(schema: Any) -> list[str]:
    if not isinstance(schema, Mapping):
        return []
    kind = schema.get("type")
    if isinstance(kind, str):
        return [kind]
    if isinstance(kind, list):
        return [k for k in kind if isinstance(k, str)]
    for key in ("anyOf", "oneOf"):
        options = schema.get(key)
        if isinstance(options, list):
            return [kind for option in options for kind in _types(option)]
    values = schema.get("enum")
    if isinstance(values, list) and values and not any(isinstance(v, str) for v in values):
        return ["integer", "number", "boolean", "null", "object", "array"]
    return []


def _read(text: str, kind: str) -> Any:
    if kind in _WORDS:
        if text.lower() not in _WORDS[kind]:
            raise ValueError
        return _WORDS[kind][text.lower()]
    value = json.loads(text)
    wanted = _CLASSES.get(kind)
    if wanted is None or isinstance(value, bool):
        raise ValueError
    if kind == "integer" and isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, wanted):
        raise ValueError
    return value
