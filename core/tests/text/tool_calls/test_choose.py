"""Real chat templates tell which format a model writes; what they render is read back."""

from __future__ import annotations

import json

import pytest

from tramontane.hooks import PluginManager, ToolFormatSpec, hookimpl, plugin_manager
from tramontane.text.chat_template import ChatTemplate
from tramontane.text.tool_calls import choose_format
from tramontane.text.tool_calls.events import CallArguments, CallBegun, CallBroken
from tramontane_testkit.data import data_path

TEMPLATES = {
    "GLM-4.6": "glm",
    "Kimi-K2-Instruct": "kimi",
    "Mistral-Small-3.2-24B-Instruct-2506": "mistral_args",
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use": "hermes",
    "Qwen-Qwen2.5-7B-Instruct": "hermes",
    "Qwen-Qwen3-0.6B": "hermes",
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": "deepseek_v3",
    "deepseek-ai-DeepSeek-V3.1": "deepseek_v31",
    "ibm-granite-granite-3.3-2B-Instruct": "granite",
    "ibm-granite-granite-4.0": "hermes",
    "meta-llama-Llama-3.1-8B-Instruct": "llama",
    "meta-llama-Llama-3.2-3B-Instruct": "llama",
    "mistralai-Mistral-Nemo-Instruct-2407": "mistral",
    "openai-gpt-oss-120b": "harmony",
}
SHOWS_NO_CALLS = {"ibm-granite-granite-3.3-2B-Instruct", "Kimi-K2-Instruct"}
"""Templates that do not show a past call in the form in which the model writes one; Kimi's changes
lists on the way, which the sandbox forbids, as transformers' does."""


def template(name: str) -> str:
    return data_path("chat-templates", f"{name}.jinja").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_real_template_tells_its_format(name: str) -> None:
    chosen = choose_format(plugin_manager().specs("tool_formats"), template(name))
    assert chosen is not None
    assert chosen.name == TEMPLATES[name]


@pytest.mark.parametrize("name", sorted(set(TEMPLATES) - SHOWS_NO_CALLS))
def test_what_a_template_renders_is_read_back(name: str) -> None:
    """A past call, as the template shows it to the model, is what the model will write."""
    arguments = {"city": "Oslo", "days": 2}
    call = {
        "id": "abcdefghi",
        "type": "function",
        "function": {"name": "weather", "arguments": json.dumps(arguments)},
    }
    messages = [
        {"role": "user", "content": "How is Oslo?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]
    properties = {"city": {"type": "string"}, "days": {"type": "integer"}}
    tools = [
        {
            "type": "function",
            "function": {
                "name": "weather",
                "description": "Weather of a city",
                "parameters": {"type": "object", "properties": properties},
            },
        }
    ]
    chat = ChatTemplate(template(name), bos_token="<s>", eos_token="</s>")
    if name == "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B":  # prints the arguments' text anew
        messages[1]["content"] = None
    before = chat.render(messages[:1], tools=tools, add_generation_prompt=True)
    whole = chat.render(messages, tools=tools, add_generation_prompt=False)
    common = next(
        (at for at, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b), len(before)
    )
    spec = plugin_manager().get("tool_formats", TEMPLATES[name])
    reader = plugin_manager().resolve(spec)(tools)
    events = reader.push(whole[common:]) + reader.flush()
    begun = [event for event in events if isinstance(event, CallBegun)]
    text = "".join(event.text for event in events if isinstance(event, CallArguments))
    assert [event.name for event in begun] == ["weather"]
    assert not any(isinstance(event, CallBroken) for event in events)
    assert json.loads(text) == arguments


def test_a_plug_in_adds_a_format() -> None:
    class Plugin:
        @hookimpl
        def tramontane_tool_formats(self) -> list[ToolFormatSpec]:
            return [
                ToolFormatSpec(
                    name="banner",
                    target="tramontane.text.tool_calls.json_calls:Hermes",
                    markers=("<tool_call>", "<<<CALL>>>"),
                )
            ]

    manager = PluginManager([Plugin()], discover=False)
    specs = manager.specs("tool_formats")
    chosen = choose_format(specs, "{# <<<CALL>>> <tool_call> #}")
    assert chosen is not None
    assert chosen.name == "banner"
    plain = choose_format(specs, "{{ tools }}")
    assert plain is not None
    assert plain.name == "llama"
