"""The Jinja environment of chat templates, which come from strangers and run in a sandbox.

It offers what Hugging Face documents for chat templates ("Chat templating" in the transformers
guide): block trimming, loop controls, ``tojson`` without HTML escapes, ``raise_exception``,
``strftime_now``, and ``{% generation %}`` blocks, which mark an assistant's text for training and
change nothing here.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace


class GenerationBlock(Extension):
    """``{% generation %}`` … ``{% endgeneration %}``: rendered as if the tags were not there."""

    tags = {"generation"}  # noqa: RUF012 (the base class declares it so)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class TemplateDict:
    """``dict(...)`` for templates, without the class and what can be reached from it."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, keys: Any, value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)


class TemplateNamespace(Namespace):
    """``namespace(...)`` whose attributes cannot shadow Python's own."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # ``self`` may be an attribute
        self, *rest = args
        values = dict(*rest, **kwargs)
        for name in values:
            _refuse_private(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: object) -> None:
    if str(name).startswith("_"):
        raise SecurityError(f"a namespace takes no attribute {name!r}, which begins with '_'")


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """The ``tojson`` filter: plain JSON, with characters outside ASCII as they are."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def raise_exception(message: object) -> NoReturn:
    """Lets a template refuse its messages."""
    raise TemplateError(str(message))


def strftime_now(pattern: str) -> str:
    """The local time, in the notation of ``strftime``."""
    return datetime.now().strftime(pattern)


def environment() -> ImmutableSandboxedEnvironment:
    """A new environment. Ranges are limited by the sandbox, and its values cannot be changed."""
    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, loopcontrols]
    )
    env.filters["tojson"] = to_json
    env.globals.update(
        raise_exception=raise_exception,
        strftime_now=strftime_now,
        dict=TemplateDict(),
        namespace=TemplateNamespace,
    )
    return env
