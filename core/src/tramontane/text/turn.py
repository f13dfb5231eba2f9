"""`TurnReader`: what a model says, thinks and calls in one answer."""

from __future__ import annotations

from tramontane.text.reasoning import ReasoningDelta, ReasoningSplitter
from tramontane.text.tool_calls.events import Said, Thought, ToolFormat, TurnEvent


class TurnReader:
    """First the reasoning is told from the rest, then tool calls: what looks like a call inside
    the reasoning is none.

    Args:
        splitter: None for a model that does not think, or whose format tells reasoning itself.
        calls: None when no calls are looked for.
    """

    def __init__(self, splitter: ReasoningSplitter | None, calls: ToolFormat | None) -> None:
        self._splitter = splitter
        self._calls = calls

    def push(self, text: str) -> list[TurnEvent]:
        """Take more text and tell what is decided."""
        if self._splitter is None:
            return self._read(text)
        return self._split(self._splitter.push(text))

    def flush(self) -> list[TurnEvent]:
        """Tell the rest, once it is certain that no more text will come."""
        events = [] if self._splitter is None else self._split(self._splitter.flush())
        return events if self._calls is None else events + self._calls.flush()

    def _split(self, delta: ReasoningDelta) -> list[TurnEvent]:
        events: list[TurnEvent] = [Thought(delta.reasoning)] if delta.reasoning else []
        return events + self._read(delta.content)

    def _read(self, text: str) -> list[TurnEvent]:
        if not text:
            return []
        return [Said(text)] if self._calls is None else self._calls.push(text)
