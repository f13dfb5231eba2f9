"""What a tool or resource answers, as text for a model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from attrs import frozen
from mcp import types


@frozen
class Image:
    """One image of an answer.

    Attributes:
        mime_type: such as ``image/png``.
        data: base64.
    """

    mime_type: str
    data: str


@frozen
class ToolResult:
    """What a tool answered.

    Attributes:
        text: its texts, one below the other; the structured content where it has no text; a line
            in brackets for whatever is no text.
        structured: its structured content, which the SDK has held against the tool's schema.
        images: its images.
        is_error: the tool says that it failed; ``text`` says why.
    """

    text: str
    structured: Any = None
    images: tuple[Image, ...] = ()
    is_error: bool = False


def tool_result(answer: types.CallToolResult) -> ToolResult:
    """A server's answer to ``tools/call``."""
    text = "\n".join(_lines(answer.content))
    if answer.structured_content is not None and not any(
        isinstance(block, types.TextContent) for block in answer.content
    ):
        structured = json.dumps(answer.structured_content, ensure_ascii=False)
        text = f"{structured}\n{text}" if text else structured
    images = tuple(
        Image(block.mime_type, block.data)
        for block in answer.content
        if isinstance(block, types.ImageContent)
    )
    return ToolResult(text, answer.structured_content, images, bool(answer.is_error))


def resource_text(answer: types.ReadResourceResult) -> str:
    """A server's answer to ``resources/read``."""
    return "\n".join(_resource(part) for part in answer.contents)


def _lines(blocks: Iterable[types.ContentBlock]) -> Iterator[str]:
    for block in blocks:
        match block:
            case types.TextContent():
                yield block.text
            case types.ImageContent() | types.AudioContent():
                yield f"[{block.type}: {block.mime_type}, {_size(block.data)} bytes]"
            case types.EmbeddedResource():
                yield _resource(block.resource)
            case types.ResourceLink():
                yield f"[resource {block.uri}: {block.description or block.name}]"


def _resource(part: types.TextResourceContents | types.BlobResourceContents) -> str:
    if isinstance(part, types.TextResourceContents):
        return part.text
    kind = part.mime_type or "application/octet-stream"
    return f"[resource {part.uri}: {kind}, {_size(part.blob)} bytes]"


def _size(base64: str) -> int:
    return len(base64) * 3 // 4 - base64[-2:].count("=")
