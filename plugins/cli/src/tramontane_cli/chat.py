"""The conversation: a line is read, an answer is shown, and both are kept for the next turn.

Ctrl-C stops an answer; Ctrl-D or ``/exit`` at the prompt leaves.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from tramontane.errors import RequestError
from tramontane_cli.answer import TOO_MANY_ROUNDS, Screen, stats_line, take

if TYPE_CHECKING:
    from tramontane_cli.tool_desk import ToolDesk

HELP = """\
/clear         forget the conversation
/system TEXT   set the system message; without TEXT, drop it
/help          this list
/exit          leave, as does Ctrl-D
Ctrl-C stops an answer. Alt-Enter begins a new line."""

COMMAND = re.compile(r"/([a-z]+)(?:\s+(.*))?", re.DOTALL)


class Chat:
    """A conversation with one model.

    Args:
        runner: a loaded `tramontane.Runner`.
        model: the name shown at the start.
        fields: of `ChatCompletionRequest`, for every turn.
        system: system message, or None.
        stats: whether to say after each answer how fast it was.
        desk: shows the runner's tools as they run; None without tools.
        read: gives the next line; raises EOFError to leave and KeyboardInterrupt on Ctrl-C.
    """

    def __init__(
        self,
        runner: Any,
        model: str,
        fields: dict[str, Any],
        *,
        system: str | None = None,
        stats: bool = False,
        desk: ToolDesk | None = None,
        read: Callable[[], str] | None = None,
    ) -> None:
        self.runner = runner
        self.model = model
        self.fields = fields
        self.system = system
        self.stats = stats
        self.desk = desk
        self.turns: list[dict[str, Any]] = []
        self._read = read or line_reader(history_file())

    def talk(self) -> None:
        """Until the person leaves."""
        typer.secho(f"{self.model} — /help lists the commands, Ctrl-D leaves", err=True, dim=True)
        while True:
            try:
                line = self._read().strip()
            except EOFError:
                return
            except KeyboardInterrupt:
                typer.secho("Ctrl-D or /exit leaves", err=True, dim=True)
                continue
            command = COMMAND.fullmatch(line)
            if command and command[1] in ("exit", "quit"):
                return
            if command:
                self._obey(command[1], (command[2] or "").strip())
            elif line:
                self._answer(line)

    def _obey(self, command: str, argument: str) -> None:
        match command:
            case "clear":
                self.turns.clear()
                self._note("the conversation is forgotten")
            case "system":
                self.system = argument or None
                self._note("system message set" if argument else "no system message")
            case "help":
                typer.echo(HELP)
            case _:
                self._note(f"there is no command /{command}; /help lists them")

    def _answer(self, line: str) -> None:
        from tramontane import ChatCompletionRequest

        self.turns.append({"role": "user", "content": line})
        head = [{"role": "system", "content": self.system}] if self.system is not None else []
        try:
            request = ChatCompletionRequest(
                messages=[*head, *self.turns], stream=True, **self.fields
            )
            answer = take(self.runner.send_chat_completion_request(request), Screen(), self.desk)
        except RequestError as error:
            self.turns.pop()
            self._note(f"error: {error}")
            return
        except KeyboardInterrupt:  # before there was a stream to stop
            self.turns.pop()
            self._note("stopped")
            return
        if answer.text:
            self.turns += [*answer.messages, {"role": "assistant", "content": answer.text}]
        else:
            self.turns.pop()
        if answer.finish_reason == "tool_calls":
            self._note(TOO_MANY_ROUNDS)
        if answer.interrupted:
            self._note("stopped")
        if self.stats:
            typer.echo(stats_line(answer), err=True)

    def _note(self, text: str) -> None:
        typer.secho(text, err=True, dim=True)


def history_file() -> Path:
    """Where the lines a person typed are kept between sessions."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    else:
        base = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return base / "tramontane" / "history"


def line_reader(history: Path) -> Callable[[], str]:
    """Reads lines with editing and history; the history file is the user's alone."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory, History, InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings

    kept: History
    try:
        history.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        history.touch(mode=0o600)
        kept = FileHistory(str(history))
    except OSError as error:
        typer.secho(f"history is not kept: {error}", err=True, dim=True)
        kept = InMemoryHistory()
    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _(event: Any) -> None:
        event.current_buffer.insert_text("\n")

    session: PromptSession[str] = PromptSession("> ", history=kept, key_bindings=keys)
    return session.prompt
