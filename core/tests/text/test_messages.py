"""Messages in every form users send."""

from __future__ import annotations

from typing import Any

import pytest

from tramontane.errors import ValidationError
from tramontane.text.messages import (
    AudioPart,
    ImagePart,
    TextPart,
    normalize_messages,
    text_messages,
)

USER = {"role": "user", "content": "x"}
IMAGE = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}


def text(value: str) -> dict[str, str]:
    return {"type": "text", "text": value}


def user(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


def test_a_string_is_one_user_message() -> None:
    assert text_messages("hi") == [{"role": "user", "content": "hi"}]


def test_text_parts_become_text() -> None:
    assert text_messages(user(text("hi"))) == [{"role": "user", "content": "hi"}]
    assert text_messages(user(text("a"), text("b"))) == [{"role": "user", "content": "a b"}]


def test_mixed_parts_keep_their_order() -> None:
    (message,) = normalize_messages(user(text("a"), IMAGE, text("b")))
    assert message.content == (
        TextPart("a"),
        ImagePart("https://example.org/a.png"),
        TextPart("b"),
    )
    assert message.template_dict()["content"] == [text("a"), {"type": "image"}, text("b")]


def test_audio_forms() -> None:
    inline = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "mp3"}}
    (message,) = normalize_messages(user({"type": "audio_url", "audio_url": "a.wav"}, inline))
    assert message.parts == (
        AudioPart("a.wav"),
        AudioPart("data:audio/mp3;base64,AAAA", "mp3"),
    )


@pytest.mark.parametrize(
    "url",
    [
        "http://a/b.png",
        "HTTPS://a/b.png",
        "file:///tmp/a.png",
        "pictures/a.png",
        "/tmp/a b.png",
        "C:\\pictures\\a.png",
        "data:image/png;base64,AAAA",
    ],
)
def test_references_that_are_taken(url: str) -> None:
    (message,) = normalize_messages(user({"type": "image_url", "image_url": {"url": url}}))
    assert message.parts == (ImagePart(url),)


@pytest.mark.parametrize("url", ["ftp://a/b.png", "data:image/png,AAAA", "", None, 3, {}])
def test_references_that_are_refused(url: Any) -> None:
    with pytest.raises(ValidationError, match=r"messages\[0\]\.content\[0\]\.image_url"):
        normalize_messages(user({"type": "image_url", "image_url": {"url": url}}))


def test_other_keys_are_kept() -> None:
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]},
        {"role": "tool", "content": "3", "tool_call_id": "x", "name": "f"},
        {"role": "assistant", "content": "three", "reasoning_content": "hm"},
    ]
    assert text_messages(messages) == messages


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "messages is empty"),
        ({"role": "user"}, "must be a string or a list of dicts, not dict"),
        (3, "not int"),
        (["hi"], r"messages\[0\] must be a dict, not str"),
        ([{"content": "x"}], r"messages\[0\] has no 'role'"),
        ([USER, {"role": "king", "content": "x"}], r"\[1\]\.role.*'king'"),
        ([{"role": 3, "content": "x"}], r"messages\[0\]\.role.*3"),
        ([{"role": "user"}], r"messages\[0\] \(role 'user'\) has no 'content'"),
        ([{"role": "assistant", "content": None}], "has no 'content'"),
        ([{"role": "user", "content": 3}], r"messages\[0\]\.content must be .* not int"),
        (user(), r"messages\[0\]\.content is an empty list"),
        (user(3), r"messages\[0\]\.content\[0\] must be a dict"),
        (user(text("a"), {"type": "vide"}), r"content\[1\]\.type must be .*'vide'"),
        (user({"text": "a"}), r"content\[0\]\.type must be .*None"),
        (user({"type": "text"}), r"content\[0\]\.text must be a string"),
        (user({"type": "input_audio"}), r"content\[0\]\.input_audio"),
        ([{"role": "system", "content": [IMAGE]}], r"messages\[0\]\.content\[0\].*role 'system'"),
        ([{"role": "assistant", "content": "x", "tool_calls": "f"}], r"tool_calls must be a list"),
        ([{"role": "assistant", "tool_calls": [3]}], r"messages\[0\]\.tool_calls\[0\] must be"),
        ([{"role": "assistant", "tool_calls": [{"function": {}}]}], r"\[0\]\.function\.name"),
        ([{"role": "user", "content": "x", 3: 4}], r"messages\[0\] has the key 3"),
    ],
)  # fmt: skip
def test_bad_messages(messages: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        normalize_messages(messages)


def test_a_text_model_refuses_media() -> None:
    with pytest.raises(ValidationError, match=r"messages\[0\]\.content\[1\] is an image"):
        text_messages(user(text("a"), IMAGE))
    with pytest.raises(ValidationError, match=r"messages\[0\]\.content\[0\] is audio"):
        text_messages(user({"type": "audio_url", "audio_url": "a.wav"}))
