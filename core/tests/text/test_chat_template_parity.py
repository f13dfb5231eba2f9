"""Real templates render as transformers renders them, and refuse what it refuses."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from tramontane.errors import TemplateError
from tramontane.text.chat_template import ChatTemplate

TEMPLATES = [
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use",
    "GLM-4.6",
    "HuggingFaceTB-SmolLM3-3B",
    "Kimi-K2-Instruct",
    "Mistral-Small-3.2-24B-Instruct-2506",
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use",
    "Qwen-Qwen2.5-7B-Instruct",
    "Qwen-Qwen3-0.6B",
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B",
    "deepseek-ai-DeepSeek-V3.1",
    "google-gemma-2-2b-it",
    "ibm-granite-granite-3.3-2B-Instruct",
    "ibm-granite-granite-4.0",
    "meta-llama-Llama-3.1-8B-Instruct",
    "meta-llama-Llama-3.2-3B-Instruct",
    "microsoft-Phi-3.5-mini-instruct",
    "mistralai-Mistral-Nemo-Instruct-2407",
    "openai-gpt-oss-120b",
]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather <now> & later in 'a' city",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "Städte"},
                    "unit": {"type": "string", "enum": ["c", "f"]},
                },
                "required": ["city"],
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Add",
            "parameters": {
                "type": "object",
                "properties": {"a": {"type": "number"}, "b": {"type": "integer", "default": 3}},
                "required": ["a", "b"],
            },
            "return": {"type": "number", "description": "sum"},
        },
    },
]


def say(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def call(arguments: Any, name: str = "get_weather", call_id: str = "abcdef123") -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"id": call_id, "type": "function", "function": function}


HI = say("user", "Hi there, ünïcode <b>?")
HELLO = say("assistant", "Hello!")
BRIEF = say("system", "Be brief.")
MORE = say("user", " more \n")
SUNNY = say("tool", '{"t": "sunny"}', name="get_weather", tool_call_id="abcdef123")
PARIS = call({"city": "Paris", "n": [1, {"x": None}]})
CONVERSATIONS = {
    "plain": [HI],
    "system": [BRIEF, HI],
    "turns": [HI, HELLO, MORE],
    "system and turns": [BRIEF, HI, HELLO, MORE],
    "thinking in content": [HI, say("assistant", "<think>\nhm\n</think>\n\nHello!"), MORE],
    "reasoning": [HI, say("assistant", "Hello!", reasoning_content="hm"), MORE],
    "assistant last": [HI, HELLO],
    "developer": [say("developer", "Be brief."), HI],
    "tool call": [HI, say("assistant", "", tool_calls=[PARIS]), SUNNY],
    "tool call without content": [HI, {"role": "assistant", "tool_calls": [PARIS]}, SUNNY, HELLO],
    "tool call with null content": [HI, say("assistant", None, tool_calls=[PARIS]), SUNNY],
    "tool call with text": [HI, say("assistant", "Let me see", tool_calls=[PARIS]), SUNNY],
    "two tool calls": [
        HI,
        say("assistant", "", tool_calls=[PARIS, call({"a": 1, "b": 2}, "add", "abcdef124")]),
        SUNNY,
        say("tool", "3", name="add", tool_call_id="abcdef124"),
    ],
    "parts": [say("user", [{"type": "text", "text": "Hi"}, {"type": "text", "text": "you"}])],
}
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def as_text(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same with tool call arguments as OpenAI's clients send them."""
    copy = json.loads(json.dumps(messages))
    for message in copy:
        for each in message.get("tool_calls") or ():
            each["function"]["arguments"] = json.dumps(each["function"]["arguments"])
    return copy


@pytest.mark.parametrize("name", TEMPLATES)
def test_renders_as_transformers_does(data: Path, name: str) -> None:
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    source = (data / "chat-templates" / f"{name}.jinja").read_text(encoding="utf-8")
    template = ChatTemplate(source, **TOKENS)

    def ours(messages: list[dict[str, Any]], tools: Any, thinking: Any, prompt: bool) -> str | None:
        try:
            return template.render(
                messages, tools=tools, enable_thinking=thinking, add_generation_prompt=prompt
            )
        except TemplateError:
            return None

    rendered = 0
    for messages, tools, thinking, prompt in itertools.product(
        CONVERSATIONS.values(), (None, TOOLS), (None, True, False), (True, False)
    ):
        options = {} if thinking is None else {"enable_thinking": thinking, "thinking": thinking}
        plain = messages
        if '"content" in message' in source:  # null, which transformers gives it, breaks it
            plain = [{k: v for k, v in each.items() if v is not None} for each in messages]
        try:
            expected = utils.render_jinja_template(
                [plain],
                tools=tools,
                chat_template=source,
                add_generation_prompt=prompt,
                **TOKENS,
                **options,
            )[0][0]
        except Exception:  # whatever a template's own mistakes raise
            expected = None
        assert ours(messages, tools, thinking, prompt) == expected
        assert ours(as_text(messages), tools, thinking, prompt) == expected
        rendered += expected is not None
    assert rendered >= 36  # most of what a template is for


def test_all_templates_are_covered(data: Path) -> None:
    assert sorted(path.stem for path in (data / "chat-templates").glob("*.jinja")) == sorted(
        TEMPLATES
    )
