from __future__ import annotations

import inspect
import json
import math
from typing import Any

import pytest

from tramontane.api import (
    ChatCompletionRequest,
    CompletionRequest,
    EmbeddingRequest,
    GrammarType,
    ReasoningEffort,
    SearchContextSize,
    ToolChoice,
    WebSearchOptions,
)
from tramontane.errors import ValidationError

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


CHAT = (
    "messages model logprobs n_choices logit_bias top_logprobs max_tokens presence_penalty "
    "frequency_penalty repetition_penalty stop_seqs temperature top_p top_k stream grammar "
    "grammar_type min_p tool_schemas tool_choice dry_multiplier dry_base dry_allowed_length "
    "dry_sequence_breakers web_search_options enable_thinking truncate_sequence reasoning_effort"
)
COMPLETION = (
    "prompt model best_of echo_prompt presence_penalty frequency_penalty repetition_penalty "
    "logit_bias max_tokens n_choices stop_seqs temperature top_p suffix top_k grammar "
    "grammar_type min_p tool_schemas tool_choice dry_multiplier dry_base dry_allowed_length "
    "dry_sequence_breakers truncate_sequence"
)
DEFAULTS = {
    "model": "default",
    "logprobs": False,
    "n_choices": 1,
    "stream": False,
    "truncate_sequence": False,
    "ignore_eos": False,
}


@pytest.mark.parametrize(
    ("cls", "names", "defaults"),
    [
        (ChatCompletionRequest, CHAT, DEFAULTS),
        (CompletionRequest, COMPLETION, DEFAULTS | {"best_of": 1, "echo_prompt": False}),
    ],
)
def test_positions_and_defaults_are_those_of_the_sdk(
    cls: type, names: str, defaults: dict[str, Any]
) -> None:
    parameters = list(inspect.signature(cls).parameters.values())
    positional = [p.name for p in parameters if p.kind is not inspect.Parameter.KEYWORD_ONLY]
    assert " ".join(positional) == names
    unstated = (None, inspect.Parameter.empty)
    assert {p.name: p.default for p in parameters if p.default not in unstated} == defaults


def test_the_documented_request() -> None:
    request = ChatCompletionRequest(
        model="default",
        messages=[{"role": "user", "content": "Tell me a story about the Rust type system."}],
        max_tokens=256,
        presence_penalty=1.0,
        top_p=0.1,
        temperature=0.1,
    )
    assert request.messages[0]["role"] == "user"
    assert (request.max_tokens, request.n_choices, request.stream) == (256, 1, False)


@pytest.mark.parametrize("cls", [ChatCompletionRequest, CompletionRequest])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", "hot"),
        ("temperature", True),
        ("top_p", 0),
        ("top_p", 1.5),
        ("top_p", -1),
        ("top_k", 0),
        ("top_k", -2),
        ("top_k", 2.0),
        ("min_p", -0.1),
        ("min_p", 1.0),
        ("presence_penalty", math.nan),
        ("frequency_penalty", math.inf),
        ("repetition_penalty", 0),
        ("repetition_penalty", -1),
        ("n_choices", 0),
        ("n_choices", None),
        ("max_tokens", -1),
        ("max_tokens", 0),
        ("max_tokens", 1.5),
        ("logit_bias", {"x": 1}),
        ("logit_bias", {-1: 1}),
        ("logit_bias", {2**32: 1}),
        ("logit_bias", {1: "a"}),
        ("logit_bias", {1: math.nan}),
        ("logit_bias", [1]),
        ("top_logprobs", 21),
        ("top_logprobs", -1),
        ("logprobs", 1),
        ("stop_seqs", [""]),
        ("stop_seqs", [1]),
        ("stop_seqs", 7),
        ("dry_multiplier", -1),
        ("dry_base", 0.5),
        ("dry_allowed_length", -1),
        ("dry_sequence_breakers", [None]),
        ("grammar_type", "yaml"),
        ("tool_schemas", ["{"]),
        ("tool_schemas", [{"type": "function"}]),
        ("tool_schemas", [TOOL | {"type": "magic"}]),
        ("tool_schemas", json.dumps(TOOL)),
        ("tool_choice", "sometimes"),
        ("tool_choice", {"type": "function"}),
        ("truncate_sequence", "yes"),
        ("ignore_eos", None),
        ("model", ""),
        ("model", None),
        ("seed", "abc"),
        ("adapter", " "),
    ],
)
def test_bad_values_are_refused_by_name(cls: type[Any], field: str, value: Any) -> None:
    fields = {"messages": "hi"} if cls is ChatCompletionRequest else {"prompt": "hi"}
    with pytest.raises(ValidationError) as caught:
        cls(**fields, **{field: value})
    assert field in str(caught.value) or type(value).__name__ == "str"


@pytest.mark.parametrize(
    "fields",
    [
        {"grammar": "a+"},
        {"grammar_type": "regex"},
        {"grammar": "a+", "grammar_type": "regex", "response_format": {"type": "json_object"}},
        {"top_logprobs": 3},
        {"enable_thinking": True, "reasoning_effort": "off"},
        {"enable_thinking": False, "reasoning_effort": "low"},
        {
            "tool_schemas": [TOOL],
            "tool_choice": {"type": "function", "function": {"name": "g"}},
        },
    ],
)
def test_contradictions_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ChatCompletionRequest("hi", **fields)


@pytest.mark.parametrize(
    "messages", [[], None, 3, ["hi"], [{"content": "hi"}], [{"role": 3}], {"role": "user"}]
)
def test_bad_messages(messages: Any) -> None:
    with pytest.raises(ValidationError, match="messages"):
        ChatCompletionRequest(messages)


def test_values_are_brought_into_one_form() -> None:
    request = ChatCompletionRequest(
        messages=({"role": "user", "content": "hi"},),
        logit_bias={"17": 2, 18: -1.5},
        stop_seqs="\n",
        top_k=-1,
        grammar="{}",
        grammar_type="JSON_Schema",
        tool_schemas=[json.dumps(TOOL), TOOL],
        tool_choice="Auto",
        reasoning_effort="High",
        web_search_options={"search_context_size": "low"},
    )
    assert request.messages == [{"role": "user", "content": "hi"}]
    assert request.logit_bias == {17: 2.0, 18: -1.5}
    assert request.stop_seqs == ["\n"]
    assert request.grammar_type is GrammarType.JsonSchema
    assert request.tool_schemas == [TOOL, TOOL]
    assert request.tool_choice is ToolChoice.Auto
    assert request.reasoning_effort is ReasoningEffort.High
    assert request.web_search_options == WebSearchOptions(SearchContextSize.Low)


def test_values_are_checked_when_set_later() -> None:
    request = ChatCompletionRequest("hi")
    request.temperature = 0.5
    with pytest.raises(ValidationError, match="temperature"):
        request.temperature = -1
    with pytest.raises(AttributeError):
        request.temprature = 1  # type: ignore[attr-defined]


def test_a_validation_error_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="n_choices"):
        ChatCompletionRequest("hi", n_choices=0)


@pytest.mark.parametrize(
    ("given", "inputs"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
        (("a",), ["a"]),
        ([2**32 - 1], [[2**32 - 1]]),
    ],
)
def test_embedding_inputs(given: Any, inputs: Any) -> None:
    assert EmbeddingRequest(given).inputs == inputs
    assert EmbeddingRequest(given, True).truncate_sequence


@pytest.mark.parametrize(
    "given", [[], [[]], [""], ["a", 1], [["a"]], [-1], [2**32], [[1], [-1]], [True], None, 3, [1.0]]
)
def test_bad_embedding_inputs(given: Any) -> None:
    with pytest.raises(ValidationError, match="input"):
        EmbeddingRequest(given)
