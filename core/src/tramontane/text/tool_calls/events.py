"""How a model family writes tool calls into its answers, and what is read from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

from attrs import frozen


@frozen
class Said:
    """Text of the answer."""

    text: str


@frozen
class Thought:
    """Text of the reasoning before the answer."""

    text: str


@frozen
class CallBegun:
    """A tool call of which the name is known.

    Attributes:
        index: counts the calls of this turn from 0, broken ones included.
        id: names the call in the history; in the form the family's template wants.
    """

    index: int
    id: str
    name: str


@frozen
class CallArguments:
    """More of the JSON text of a call's arguments. All of it together is an object, unless the
    call is `CallBroken`."""

    index: int
    text: str


@frozen
class CallBroken:
    """A call that has begun is none: it stops half-way or is malformed. What the model wrote for
    it follows as `Said`."""

    index: int


TurnEvent = Said | Thought | CallBegun | CallArguments | CallBroken

Tools = Sequence[Mapping[str, Any]]
"""OpenAI function schemas: ``{"type": "function", "function": {"name", "parameters", …}}``."""

Mark = Callable[[str], str]
"""Turns one of the format's markers into Lark: a special token where the vocabulary has one of
that text, else a string."""


@runtime_checkable
class ToolFormat(Protocol):
    """Reads one answer. The target of a `ToolFormatSpec` is a class of this kind.

    What all events say together does not depend on how the text was divided.

    Attributes:
        TRIGGER: the marker that `call_grammar` begins with, wherever in the answer it stands;
            empty if calls can only begin the answer.
        NO_CALL: for an empty ``TRIGGER``, a regular expression of answers that are no call; empty
            if there is none.
    """

    TRIGGER: ClassVar[str]
    NO_CALL: ClassVar[str]

    def __init__(self, tools: Tools = ()) -> None: ...

    def push(self, text: str) -> list[TurnEvent]:
        """Take more text and tell what is decided. Text that may belong to a marker waits."""
        ...

    def flush(self) -> list[TurnEvent]:
        """No more text will come: tell the rest. A call that stops half-way becomes text."""
        ...

    @classmethod
    def call_grammar(cls, tools: Tools, mark: Mark) -> str | None:
        """Lark rules for a call, the entry being ``tool_call``; None if the family's calls cannot
        be told by a grammar.

        Args:
            tools: those that may be called; at least one.
            mark: for the format's markers.
        """
        ...

    @classmethod
    def turn_grammar(cls, mark: Mark, *, endings: Sequence[str]) -> str | None:
        """Lark rules for a whole turn, the entry being ``start``, of a format with
        ``whole_answer``; None if they cannot be told.

        Args:
            mark: for the format's markers.
            endings: what may come after the reasoning, of ``answer`` and ``tool_call``: rules
                that stand beside these, with ``ANY_TEXT`` for text without special tokens.
        """
        ...
