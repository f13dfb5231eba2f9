"""One answer: taken from the runner piece by piece, shown as it comes, and what it cost."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from contextlib import closing
from typing import TYPE_CHECKING, Any

import typer
from attrs import define, field

from tramontane_cli.terminal import is_terminal, printable

if TYPE_CHECKING:
    from tramontane_cli.tool_desk import ToolDesk

TOO_MANY_ROUNDS = "no answer: the model goes on calling tools"


@define
class Answer:
    """What came of one request.

    Attributes:
        text, reasoning: the content and the thoughts before it, as far as they came; where tools
            were run, those after the last of them.
        executed: the tool calls that were run.
        messages: of the rounds in which they were, for the conversation that goes on.
        finish_reason: as the runner says, ``"canceled"`` after Ctrl-C.
        interrupted: whether Ctrl-C ended it.
        usage: the runner's account of tokens and time, None when the answer was cut short.
        first_token_secs: from sending the request to the first text.
    """

    text: str = ""
    reasoning: str = ""
    finish_reason: str | None = None
    usage: Any = None
    first_token_secs: float | None = None
    interrupted: bool = False
    executed: list[Any] = field(factory=list)
    messages: list[dict[str, Any]] = field(factory=list)

    def as_data(self, model: str) -> dict[str, Any]:
        """The object that ``--json`` prints."""
        return {
            "model": model,
            "content": self.text,
            "reasoning_content": self.reasoning or None,
            "executed_tool_calls": [run.to_dict() for run in self.executed] or None,
            "finish_reason": self.finish_reason,
            "first_token_secs": self.first_token_secs,
            "usage": None if self.usage is None else self.usage.to_dict(),
        }


class Screen:
    """Writes text as it arrives. Thoughts are shown dim, and only to a person."""

    def __init__(self, *, silent: bool = False) -> None:
        self.watched = is_terminal(sys.stdout)
        self.silent = silent
        self._thinking = False
        self._line_open = False

    def thought(self, text: str) -> None:
        if self.watched and not self.silent:
            self._thinking = self._line_open = True
            typer.secho(printable(text), dim=True, nl=False)

    def text(self, text: str) -> None:
        if self.silent:
            return
        if self._thinking:
            typer.echo("\n")
            self._thinking = False
        sys.stdout.write(printable(text) if self.watched else text)
        sys.stdout.flush()
        self._line_open = not text.endswith("\n")

    def end_line(self) -> None:
        """What comes next begins a line."""
        if self._line_open:
            typer.echo()
        self._thinking = self._line_open = False

    def end(self) -> None:
        if not self.silent:
            typer.echo()


def take(chunks: Iterable[Any], screen: Screen, desk: ToolDesk | None = None) -> Answer:
    """Show a stream until it ends. Ctrl-C closes the stream, which frees its place in the engine,
    and gives back what there is. ``desk`` shows the tools that run meanwhile."""
    answer = Answer()
    if desk is not None:
        desk.screen = screen
    text: list[str] = []
    reasoning: list[str] = []
    start = time.perf_counter()
    try:
        with closing(chunks):  # type: ignore[type-var]
            for chunk in chunks:
                answer.usage = chunk.usage or answer.usage
                for choice in chunk.choices:
                    thought, piece = _pieces(choice)
                    if answer.first_token_secs is None and (thought or piece):
                        answer.first_token_secs = time.perf_counter() - start
                    if thought:
                        reasoning.append(thought)
                        screen.thought(thought)
                    if piece:
                        text.append(piece)
                        screen.text(piece)
                    answer.finish_reason = choice.finish_reason or answer.finish_reason
                if desk is not None and chunk.executed_tool_calls:
                    desk.show(chunk.executed_tool_calls)
                    answer.executed += chunk.executed_tool_calls
                    answer.messages += chunk.tool_messages
                    text.clear()
                    reasoning.clear()
    except KeyboardInterrupt:
        answer.finish_reason, answer.interrupted = "canceled", True
    answer.text, answer.reasoning = "".join(text), "".join(reasoning)
    screen.end()
    return answer


def _pieces(choice: Any) -> tuple[str | None, str | None]:
    """Thought and text of a chat chunk's choice, or the text of a completion chunk's."""
    delta = getattr(choice, "delta", None)
    if delta is None:
        return None, choice.text
    return getattr(delta, "reasoning_content", None), delta.content


def stats_line(answer: Answer) -> str:
    """``12 prompt tokens at 340.1/s, first text after 0.04 s, 20 tokens at 51.0/s``."""
    if answer.usage is None:
        return f"no statistics: the answer was {answer.finish_reason}"
    usage, first = answer.usage, answer.first_token_secs
    parts = [f"{usage.prompt_tokens} prompt tokens at {usage.avg_prompt_tok_per_sec:.1f}/s"]
    if first is not None:
        parts.append(f"first text after {first:.2f} s")
    parts.append(f"{usage.completion_tokens} tokens at {usage.avg_compl_tok_per_sec:.1f}/s")
    return ", ".join(parts)
