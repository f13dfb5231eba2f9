"""The command with a real model: the one that travels in tramontane-demo-model."""

from __future__ import annotations

import json

import pytest

from tramontane import ChatCompletionRequest, Runner, Which, plugin_manager

QUESTION = "What is the capital of France?"
GREEDY = ("--temperature", "0", "--max-tokens", "8")

if plugin_manager().default_model() is None:
    pytest.skip("no installed plug-in brings a default model", allow_module_level=True)


@pytest.fixture(scope="module")
def expected() -> str:
    """What the library answers."""
    which = Which.Plain(model_id=plugin_manager().default_model().name)
    with Runner(which=which) as runner:
        request = ChatCompletionRequest(messages=QUESTION, temperature=0, max_tokens=8)
        answer: str = runner.send_chat_completion_request(request).choices[0].message.content
    return answer


def test_the_command_answers_as_the_library_does(cli, expected):
    result = cli("run", *GREEDY, "--stats", QUESTION)
    assert (result.exit_code, result.stdout) == (0, expected + "\n")
    assert "prompt tokens at" in result.stderr


def test_json_of_a_real_answer(cli, expected):
    data = json.loads(cli("run", *GREEDY, "--json", QUESTION).stdout)
    assert data["content"] == expected
    assert 0 < data["usage"]["completion_tokens"] <= 8
    assert data["finish_reason"] in ("stop", "length")


def test_raw_continues_without_a_template(cli):
    data = json.loads(cli("run", *GREEDY, "--raw", "--json", "The capital of").stdout)
    assert data["content"]
    assert data["usage"]["prompt_tokens"] <= 8


def test_a_question_beyond_the_context_is_refused_in_one_line(cli):
    result = cli("run", " ".join([QUESTION] * 2000))
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: the prompt has")
    assert "Traceback" not in result.stderr
