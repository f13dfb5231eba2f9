from __future__ import annotations

import stat
from collections.abc import Callable

import pytest

from tramontane.errors import ValidationError
from tramontane_cli.chat import HELP, Chat, history_file


@pytest.fixture
def talk(fake) -> Callable[..., Chat]:
    """``talk(*lines)`` plays a conversation; an exception among the lines is a key pressed."""

    def play(*lines: object, **options: object) -> Chat:
        script = iter([*lines, EOFError()])

        def read() -> str:
            line = next(script)
            if isinstance(line, BaseException):
                raise line
            return str(line)

        chat = Chat(fake, "a/b", {"max_tokens": 5}, read=read, **options)
        chat.talk()
        return chat

    return play


def roles(request) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in request.messages]


def test_earlier_turns_are_part_of_the_next_request(talk, fake, capsys):
    fake.answers = [["One."], ["Two."]]
    talk("first", "second", system="Count.")
    assert capsys.readouterr().out == "One.\nTwo.\n"
    assert roles(fake.requests[1]) == [
        ("system", "Count."),
        ("user", "first"),
        ("assistant", "One."),
        ("user", "second"),
    ]
    assert fake.requests[1].max_tokens == 5


def test_ctrl_c_stops_the_answer_and_keeps_the_conversation(talk, fake, capsys):
    fake.answers = [["Half", KeyboardInterrupt()], ["Whole."]]
    talk("first", "second")
    assert fake.streams_closed == 2
    assert roles(fake.requests[1])[:2] == [("user", "first"), ("assistant", "Half")]
    assert "stopped" in capsys.readouterr().err


def test_ctrl_c_before_any_text_takes_the_question_back(talk, fake):
    fake.answers = [[KeyboardInterrupt()], ["Yes."]]
    talk("first", "second")
    assert roles(fake.requests[1]) == [("user", "second")]


def test_ctrl_c_at_the_prompt_tells_how_to_leave(talk, fake, capsys):
    talk(KeyboardInterrupt())
    assert "Ctrl-D" in capsys.readouterr().err
    assert not fake.requests


@pytest.mark.parametrize("command", ["/exit", "/quit", " /exit "])
def test_leaving(talk, fake, command):
    talk(command, "never sent")
    assert not fake.requests


def test_clear_and_system(talk, fake):
    fake.answers = [["a"], ["b"], ["c"]]
    talk("first", "/clear", "/system Be kind.", "second", "/system", "third")
    assert roles(fake.requests[1]) == [("system", "Be kind."), ("user", "second")]
    assert roles(fake.requests[2]) == [("user", "second"), ("assistant", "b"), ("user", "third")]


def test_help_names_every_command(talk, capsys):
    talk("/help")
    assert capsys.readouterr().out == HELP + "\n"
    for command in ("/clear", "/system", "/help", "/exit"):
        assert command in HELP


def test_an_unknown_command_is_not_sent_but_a_path_is(talk, fake, capsys):
    fake.answers = [["a directory"]]
    talk("/cler", "", "   ", "/usr/bin is what?")
    assert "no command /cler" in capsys.readouterr().err
    assert roles(fake.requests[0]) == [("user", "/usr/bin is what?")]


def test_a_refused_request_ends_nothing(talk, fake, capsys):
    fake.answers = [[ValidationError("too long; /clear helps")], ["fine"]]
    talk("long", "short")
    assert "error: too long; /clear helps" in capsys.readouterr().err
    assert roles(fake.requests[1]) == [("user", "short")]


def test_stats_after_each_answer(talk, fake, capsys):
    fake.answers = [["a"]]
    talk("hi", stats=True)
    assert "3 tokens at 51.0/s" in capsys.readouterr().err


def test_what_was_typed_is_kept_for_the_user_alone(tmp_path, monkeypatch):
    from tramontane_cli.chat import line_reader

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    file = history_file()
    assert file == tmp_path / "tramontane" / "history"
    line_reader(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
