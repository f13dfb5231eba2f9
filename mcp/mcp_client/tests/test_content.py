"""Answers as text, among them the example messages of the protocol."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mcp import types

from tramontane_mcp_client.content import resource_text, tool_result
from tramontane_mcp_client.failures import describe
from tramontane_testkit import data_path

EXAMPLES = "mcp/schema/2026-07-28/examples"


def example(name: str) -> dict[str, object]:
    path = Path(data_path(f"{EXAMPLES}/{name}"))
    loaded: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


@pytest.mark.parametrize(
    ("name", "is_error"),
    [
        ("CallToolResult/invalid-tool-input-error.json", True),
        ("CallToolResult/result-with-array-structured-content.json", False),
        ("CallToolResult/result-with-structured-content.json", False),
        ("CallToolResult/result-with-unstructured-text.json", False),
    ],
)
def test_the_protocols_tool_results(name: str, is_error: bool) -> None:
    message = example(name)
    result = tool_result(types.CallToolResult.model_validate(message))
    content = message["content"]
    assert isinstance(content, list)
    assert result.text == "\n".join(block["text"] for block in content)
    assert result.structured == message.get("structuredContent")
    assert result.is_error is is_error


def test_what_is_no_text_is_named() -> None:
    answer = types.CallToolResult.model_validate(
        {
            "content": [
                {"type": "audio", "data": "AAAA", "mimeType": "audio/wav"},
                {"type": "resource", "resource": {"uri": "a://1", "text": "inside"}},
                {
                    "type": "resource",
                    "resource": {"uri": "a://2", "blob": "AAA=", "mimeType": "application/pdf"},
                },
                {"type": "resource_link", "uri": "a://3", "name": "three"},
            ]
        }
    )
    assert tool_result(answer).text.split("\n") == [
        "[audio: audio/wav, 3 bytes]",
        "inside",
        "[resource a://2: application/pdf, 2 bytes]",
        "[resource a://3: three]",
    ]


def test_a_resource_of_several_parts() -> None:
    parts = [{"uri": "a://1", "text": "one"}, {"uri": "a://1#2", "text": "two"}]
    answer = types.ReadResourceResult.model_validate({"contents": parts})
    assert resource_text(answer) == "one\ntwo"


def test_errors_are_told_without_their_wrapping() -> None:
    inner = OSError("refused")
    inner.add_note("the server answered HTTP 503")
    group = BaseExceptionGroup("unhandled errors", [ExceptionGroup("more", [inner, KeyError("x")])])
    assert describe(group) == "refused; the server answered HTTP 503; KeyError: 'x'"
