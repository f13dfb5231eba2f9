"""What every real template makes of thinking: it is asked for, and told from the answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from attrs import frozen

from tramontane import ChatCompletionResponse, Runner
from tramontane.text.chat_template import ChatTemplate
from tramontane_testkit.data import data_path
from tramontane_testkit.scripted_model import let_say, scripted_runner

TAGS = ("<think>", "</think>")
TOOL = {"type": "function", "function": {"name": "f", "description": "f", "parameters": {}}}


@frozen
class Case:
    """How a family thinks.

    Attributes:
        on, off: what the prompt ends with when the model shall think, and when it shall not.
        said: an answer with thinking ``hm`` and text ``yes``, as the model goes on from ``on``.
    """

    on: str
    off: str
    said: str


THINKING = {
    "GLM-4.6": Case("<|assistant|>", "<|assistant|>\n<think></think>", "\n<think>hm</think>\nyes"),
    "HuggingFaceTB-SmolLM3-3B": Case(
        "assistant\n", "<think>\n\n</think>\n", "<think>\nhm</think>\n\nyes"
    ),
    "Qwen-Qwen3-0.6B": Case("assistant\n", "<think>\n\n</think>\n\n", "<think>\nhm</think>\n\nyes"),
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": Case(
        "<think>\n", "<think>\n</think>", "hm</think>\n\nyes"
    ),
    "deepseek-ai-DeepSeek-V3.1": Case("<think>", "<think></think>", "hm</think>yes"),
    "ibm-granite-granite-3.3-2B-Instruct": Case(
        "assistant<|end_of_role|>",
        "assistant<|end_of_role|>",
        "<think>hm</think>\n<response>yes</response>",
    ),
}
"""Templates that know ``<think>``. gpt-oss thinks in channels, Command R in tokens of its own."""

OTHERS = [
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use",
    "Kimi-K2-Instruct",
    "Mistral-Small-3.2-24B-Instruct-2506",
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use",
    "Qwen-Qwen2.5-7B-Instruct",
    "google-gemma-2-2b-it",
    "ibm-granite-granite-4.0",
    "meta-llama-Llama-3.1-8B-Instruct",
    "meta-llama-Llama-3.2-3B-Instruct",
    "microsoft-Phi-3.5-mini-instruct",
    "mistralai-Mistral-Nemo-Instruct-2407",
    "openai-gpt-oss-120b",
]


def source(name: str) -> str:
    return data_path("chat-templates", f"{name}.jinja").read_text("utf-8")


@pytest.mark.parametrize("name", [*THINKING, *OTHERS])
def test_thinking_is_asked_for(name: str) -> None:
    template = ChatTemplate(source(name), bos_token="<s>", eos_token="</s>")

    def prompt(**options: Any) -> str:
        tools = [TOOL] if name.endswith("tool_use") else None
        return template.render([{"role": "user", "content": "Hi"}], tools=tools, **options)

    on, off = prompt(enable_thinking=True), prompt(enable_thinking=False)
    if name in THINKING:
        assert on.endswith(THINKING[name].on)
        assert off.endswith(THINKING[name].off)
        assert on != off
        assert prompt() in (on, off)  # nothing said leaves it to the template
    elif "enable_thinking" not in source(name):
        assert on == off == prompt()
    efforts = {prompt(reasoning_effort=effort) for effort in ("low", "medium", "high")}
    assert len(efforts) == (3 if "reasoning_effort" in source(name) else 1)


@pytest.fixture(params=[(), TAGS], ids=["text", "special tokens"])
def runner(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Runner]:
    """A scripted model of the family ``name``, whose tags are special tokens or plain text."""
    name = request.getfixturevalue("name")
    with scripted_runner(tmp_path_factory.mktemp("model"), source(name), request.param) as runner:
        yield runner


@pytest.mark.parametrize("name", THINKING)
def test_thinking_is_told_from_the_answer(runner: Runner, name: str) -> None:
    asked: dict[str, Any] = {"messages": "Hi", "temperature": 0.0}

    def message(said: str, **request: Any) -> tuple[str | None, str | None]:
        let_say(runner, said)
        response = runner.send_chat_completion_request({**asked, **request})
        assert isinstance(response, ChatCompletionResponse)
        found = response.choices[0].message
        return (found.reasoning_content or "").strip(), found.content

    said = THINKING[name].said
    assert message(said, enable_thinking=True) == ("hm", "yes")
    assert message("yes", enable_thinking=False) == ("", "yes")
    unfinished = said.split("</think>")[0]
    assert message(unfinished, enable_thinking=True) == ("hm", "")

    let_say(runner, said)
    chunks = runner.send_chat_completion_request({**asked, "enable_thinking": True, "stream": True})
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(delta.content or "" for delta in deltas) == "yes"
    assert "".join(delta.reasoning_content or "" for delta in deltas).strip() == "hm"
