"""Field checks shared by requests, configuration and sampling settings.

Each is an attrs converter or validator whose `ValidationError` says the field, what it may be and
what it was.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from typing import Any, TypeVar

from tramontane.errors import ValidationError

EnumT = TypeVar("EnumT", bound=StrEnum)
Validator = Callable[[Any, Any, Any], None]


def number(
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    integer: bool = False,
    optional: bool = True,
) -> Validator:
    """A finite number within the bounds; None too unless ``optional`` is False."""
    signs = ((ge, "at least"), (gt, "above"), (le, "at most"), (lt, "below"))
    bounds = " and ".join(f"{word} {bound:g}" for bound, word in signs if bound is not None)
    wanted = " ".join(filter(None, ("an integer" if integer else "a number", bounds)))

    def check(instance: object, attribute: Any, value: Any) -> None:
        if value is None and optional:
            return
        fits = isinstance(value, int if integer else (int, float)) and not isinstance(value, bool)
        if fits:
            fits = (
                (isinstance(value, int) or math.isfinite(value))
                and (ge is None or value >= ge)
                and (gt is None or value > gt)
                and (le is None or value <= le)
                and (lt is None or value < lt)
            )
        if not fits:
            raise ValidationError(f"{attribute.name} must be {wanted}, not {value!r}")

    return check


def text(*, optional: bool = True, filled: bool = False) -> Validator:
    """A string, with ``filled`` one that is not blank; None too unless ``optional`` is False."""

    def check(instance: object, attribute: Any, value: Any) -> None:
        if value is None and optional:
            return
        if not isinstance(value, str):
            raise ValidationError(f"{attribute.name} must be a string, not {value!r}")
        if filled and not value.strip():
            raise ValidationError(f"{attribute.name} must not be empty")

    return check


def flag(optional: bool = False) -> Validator:
    """True or False."""

    def check(instance: object, attribute: Any, value: Any) -> None:
        if not (isinstance(value, bool) or (optional and value is None)):
            raise ValidationError(f"{attribute.name} must be True or False, not {value!r}")

    return check


def mapping(optional: bool = True) -> Validator:
    """A mapping with string keys."""

    def check(instance: object, attribute: Any, value: Any) -> None:
        if value is None and optional:
            return
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise ValidationError(
                f"{attribute.name} must be a mapping with string keys, not {value!r}"
            )

    return check


def texts(*, optional: bool = True) -> Validator:
    """A list of strings that are not empty."""

    def check(instance: object, attribute: Any, value: Any) -> None:
        if value is None and optional:
            return
        if not isinstance(value, list) or not all(isinstance(v, str) and v for v in value):
            raise ValidationError(
                f"{attribute.name} must be a list of strings that are not empty, not {value!r}"
            )

    return check


def as_list(value: Any) -> Any:
    """Converter: a lone string becomes a list of one, a tuple or set a list."""
    if isinstance(value, str):
        return [value]
    return list(value) if isinstance(value, (tuple, set, frozenset)) else value


def as_path(value: Any) -> Any:
    """Converter: a ``Path`` becomes its string."""
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def as_paths(value: Any) -> Any:
    """Converter: one path or several, as strings."""
    if isinstance(value, (list, tuple)):
        return [as_path(item) for item in value]
    return as_path(value)


def member(cls: type[EnumT], value: Any) -> EnumT | None:
    """The member of ``cls`` that ``value`` is, or whose name or value it is in any case; None for
    None."""
    return None if value is None else cls(value)


def open_member(cls: type[EnumT], value: Any) -> EnumT | str | None:
    """As `member`, but another name stays a plain string: a plug-in may know it."""
    try:
        return member(cls, value)
    except ValidationError:
        if isinstance(value, str) and not isinstance(value, StrEnum) and value.strip():
            return value.strip()
        raise


def logit_bias(value: Any) -> Any:
    """Converter: ``{token id: bias}`` with integer keys, which JSON writes as strings."""
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise ValidationError(f"logit_bias must map token ids to numbers, not {value!r}")
    return {_token_id(k): _bias(k, v) for k, v in value.items()}


def _token_id(key: Any) -> int:
    if isinstance(key, str) and key.strip().isascii() and key.strip().isdigit():
        key = int(key)
    if not isinstance(key, int) or isinstance(key, bool) or not 0 <= key < 2**32:
        raise ValidationError(f"logit_bias must have token ids as keys, not {key!r}")
    return key


def _bias(key: Any, value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValidationError(f"logit_bias of token {key} must be a finite number, not {value!r}")
    return float(value)


def tool_schemas(value: Any) -> Any:
    """Converter: OpenAI tools, each a JSON string or a mapping, to a list of dicts."""
    if value is None:
        return None
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise ValidationError(f"tool_schemas must be a list of tools, not {value!r}")
    return [_tool(index, tool) for index, tool in enumerate(value)]


def _tool(index: int, tool: Any) -> dict[str, Any]:
    where = f"tool_schemas[{index}]"
    if isinstance(tool, str):
        try:
            tool = json.loads(tool)
        except json.JSONDecodeError as error:
            raise ValidationError(f"{where} is not valid JSON: {error}") from error
    function = tool.get("function") if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ValidationError(
            f"{where} must read "
            '{"type": "function", "function": {"name": ..., "parameters": ...}}, '
            f"not {tool!r}"
        )
    if tool.get("type", "function") != "function":
        raise ValidationError(f'{where}: the type of a tool is "function", not {tool["type"]!r}')
    return dict(tool)
