"""A runner without a model: it says what it is told to and remembers what it was asked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import typer.testing

import tramontane
from tramontane_cli.main import app

USAGE = {
    "prompt_tokens": 12,
    "completion_tokens": 3,
    "avg_prompt_tok_per_sec": 340.06,
    "avg_compl_tok_per_sec": 51.0,
}


def usage() -> SimpleNamespace:
    return SimpleNamespace(**USAGE, to_dict=lambda: USAGE)


def chunk(
    text: str | None = None, thought: str | None = None, finish: str | None = None
) -> SimpleNamespace:
    delta = SimpleNamespace(content=text, reasoning_content=thought)
    choice = SimpleNamespace(delta=delta, finish_reason=finish)
    return SimpleNamespace(
        choices=[choice],
        usage=usage() if finish else None,
        executed_tool_calls=None,
        tool_messages=None,
    )


class FakeRunner:
    """Stands where the class `tramontane.Runner` stands, and is its only instance.

    Attributes:
        answers: what each request streams; an exception among the pieces is raised there.
        finish: how each answer ends.
        made: settings of each construction.
    """

    def __init__(self) -> None:
        self.answers: list[Iterable[Any]] = []
        self.finish = "stop"
        self.made: list[dict[str, Any]] = []
        self.requests: list[Any] = []
        self.streams_closed = 0
        self.closed = False

    def __call__(self, **settings: Any) -> FakeRunner:
        self.made.append(settings)
        return self

    def send_chat_completion_request(self, request: Any) -> Iterator[Any]:
        self.requests.append(request)
        return self._stream(self.answers.pop(0))

    send_completion_request = send_chat_completion_request

    def _stream(self, pieces: Iterable[Any]) -> Iterator[Any]:
        try:
            for piece in pieces:
                if isinstance(piece, BaseException):
                    raise piece
                yield chunk(piece) if isinstance(piece, str) else piece
            yield chunk(finish=self.finish)
        finally:
            self.streams_closed += 1

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRunner:
    runner = FakeRunner()
    monkeypatch.setattr(tramontane, "Runner", runner, raising=False)
    return runner


class Terminal:
    """Runs the application as a console would, with stdout and stderr apart."""

    def __call__(self, *args: str, stdin: str | None = None) -> Any:
        return typer.testing.CliRunner().invoke(app, list(args), input=stdin)


@pytest.fixture
def cli() -> Terminal:
    return Terminal()


@pytest.fixture(name="chunk")
def chunk_maker() -> Any:
    return chunk
