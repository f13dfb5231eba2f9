"""The messages of a chat request: one form, whatever form they came in."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import field, frozen

from tramontane.errors import ValidationError

ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")
"""Who may speak. Which of them a model's template takes is the template's affair."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")  # two letters at least: C:\ is a path
_DATA_URL = re.compile(r"data:[^,;]*(;[^,;]*)*;base64,")


@frozen
class TextPart:
    """Text."""

    text: str


@frozen
class ImagePart:
    """An image, by ``http(s)`` or ``file`` URL, path, or base64 ``data`` URL."""

    url: str


@frozen
class AudioPart:
    """A recording, by the same kinds of reference as an image.

    Attributes:
        format: file format of inline data, such as ``wav``.
    """

    url: str
    format: str | None = None


Part = TextPart | ImagePart | AudioPart


@frozen
class Message:
    """One message.

    Attributes:
        role: one of `ROLES`.
        content: text; or parts in the order in which they came, if one of them is no text; or
            None for an assistant's message that only calls tools.
        extra: all other keys, such as ``tool_calls``, ``tool_call_id``, ``name`` and
            ``reasoning_content``.
        has_content: False if the key itself was absent.
    """

    role: str
    content: str | tuple[Part, ...] | None
    extra: Mapping[str, Any] = field(factory=dict)
    has_content: bool = True

    @property
    def parts(self) -> tuple[Part, ...]:
        """The content as parts."""
        if isinstance(self.content, str):
            return (TextPart(self.content),)
        return self.content or ()

    def template_dict(self) -> dict[str, Any]:
        """The message as chat templates expect it: media parts by their type alone."""
        content: Any = self.content
        if isinstance(content, tuple):
            content = [_template_part(part) for part in content]
        own = {"role": self.role, "content": content} if self.has_content else {"role": self.role}
        return {**own, **self.extra}


def _template_part(part: Part) -> dict[str, str]:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    return {"type": "image" if isinstance(part, ImagePart) else "audio"}


def normalize_messages(messages: str | Sequence[Mapping[str, Any]]) -> list[Message]:
    """Check chat messages and bring them to one form.

    Args:
        messages: a text, taken as one message of the user, or mappings with ``role`` and
            ``content``. Content is text or a list of parts: ``{"type": "text", "text": …}``,
            ``{"type": "image_url", "image_url": {"url": …}}``, ``{"type": "audio_url", …}`` or
            ``{"type": "input_audio", "input_audio": {"data": …, "format": …}}``. A list of
            nothing but text is taken as one text, its parts joined by a space.

    Raises:
        ValidationError: something is missing, unknown or out of place; the message names the
            index and the key.
    """
    if isinstance(messages, str):
        return [Message("user", messages)]
    if isinstance(messages, Mapping) or not isinstance(messages, Sequence):
        raise ValidationError(
            f"messages must be a string or a list of dicts, not {type(messages).__name__}"
        )
    if not messages:
        raise ValidationError("messages is empty; give at least one message")
    return [_message(message, f"messages[{index}]") for index, message in enumerate(messages)]


def require_text(messages: Sequence[Message]) -> None:
    """Refuse images and recordings, for models that read only text.

    Raises:
        ValidationError: the message names the first part that is no text.
    """
    for index, message in enumerate(messages):
        for number, part in enumerate(message.parts):
            if not isinstance(part, TextPart):
                kind = "an image" if isinstance(part, ImagePart) else "audio"
                raise ValidationError(
                    f"messages[{index}].content[{number}] is {kind}, but this model reads only "
                    "text. Leave it out, or load a model that takes it."
                )


def text_messages(messages: str | Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages for the template of a model that reads only text.

    Raises:
        ValidationError: as `normalize_messages` and `require_text`.
    """
    normalized = normalize_messages(messages)
    require_text(normalized)
    return [message.template_dict() for message in normalized]


def _message(message: object, where: str) -> Message:
    if not isinstance(message, Mapping):
        raise ValidationError(f"{where} must be a dict, not {type(message).__name__}")
    for key in message:
        if not isinstance(key, str):
            raise ValidationError(f"{where} has the key {key!r}; keys must be strings")
    if "role" not in message:
        raise ValidationError(f"{where} has no 'role'; it must be one of {', '.join(ROLES)}")
    role = message["role"]
    if not isinstance(role, str) or role not in ROLES:
        raise ValidationError(f"{where}.role must be one of {', '.join(ROLES)}, not {role!r}")
    role = str.__str__(role)
    extra = {key: value for key, value in message.items() if key not in ("role", "content")}
    _check_tool_calls(extra.get("tool_calls"), f"{where}.tool_calls")
    content = message.get("content")
    if content is None:
        if role != "assistant" or not (extra.get("tool_calls") or extra.get("function_call")):
            raise ValidationError(
                f"{where} (role {role!r}) has no 'content'; only an assistant's message with "
                "tool_calls may go without"
            )
        return Message(role, None, extra, has_content="content" in message)
    return Message(role, _content(content, role, f"{where}.content"), extra)


def _content(content: object, role: str, where: str) -> str | tuple[Part, ...]:
    if isinstance(content, str):
        return content
    if isinstance(content, Mapping) or not isinstance(content, Sequence):
        raise ValidationError(
            f"{where} must be a string or a list of parts, not {type(content).__name__}"
        )
    if not content:
        raise ValidationError(f"{where} is an empty list; give at least one part")
    parts = tuple(_part(part, role, f"{where}[{index}]") for index, part in enumerate(content))
    texts = [part.text for part in parts if isinstance(part, TextPart)]
    return " ".join(texts) if len(texts) == len(parts) else parts


def _part(part: object, role: str, where: str) -> Part:
    if isinstance(part, str):
        return TextPart(part)
    if not isinstance(part, Mapping):
        raise ValidationError(f"{where} must be a dict, not {type(part).__name__}")
    kind = part.get("type")
    if kind == "text":
        text = part.get("text")
        if not isinstance(text, str):
            raise ValidationError(f"{where}.text must be a string, not {text!r:.60}")
        return TextPart(text)
    if kind == "image_url":
        if role != "user":
            raise ValidationError(
                f"{where} is an image in a message of role {role!r}; images belong in messages of "
                "role 'user'"
            )
        return ImagePart(_url(part, "image_url", where))
    if kind == "audio_url":
        return AudioPart(_url(part, "audio_url", where))
    if kind == "input_audio":
        audio = part.get("input_audio")
        if not isinstance(audio, Mapping) or not isinstance(audio.get("data"), str):
            raise ValidationError(f"{where}.input_audio must be a dict with 'data' as base64 text")
        file_format = audio.get("format") or "wav"
        return AudioPart(f"data:audio/{file_format};base64,{audio['data']}", str(file_format))
    raise ValidationError(
        f"{where}.type must be 'text', 'image_url', 'audio_url' or 'input_audio', not {kind!r:.60}"
    )


def _url(part: Mapping[str, Any], key: str, where: str) -> str:
    value = part.get(key)
    if isinstance(value, Mapping):
        value, key = value.get("url"), f"{key}.url"
    if not isinstance(value, str) or not value:
        raise ValidationError(f"{where}.{key} must be a URL or a path, not {value!r:.60}")
    scheme = _SCHEME.match(value)
    known = scheme is None or scheme[1].lower() in ("http", "https", "file", "data")
    if not known or (value.lower().startswith("data:") and not _DATA_URL.match(value)):
        raise ValidationError(
            f"{where}.{key} must be an http, https or file URL, a path, or "
            f"data:<type>;base64,<data>, not {value[:60]!r}"
        )
    return value


def _check_tool_calls(calls: object, where: str) -> None:
    if calls is None:
        return
    if isinstance(calls, str | Mapping) or not isinstance(calls, Sequence):
        raise ValidationError(f"{where} must be a list of dicts, not {type(calls).__name__}")
    for index, call in enumerate(calls):
        if not isinstance(call, Mapping):
            raise ValidationError(f"{where}[{index}] must be a dict, not {type(call).__name__}")
        function = call.get("function", call)
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise ValidationError(f"{where}[{index}].function.name must be a string")
