"""Structured output: a model of random weights at temperature 1 says only what a grammar allows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tramontane import (
    ChatCompletionRequest,
    ChatCompletionResponse,
    CompletionRequest,
    CompletionResponse,
    EngineError,
    Runner,
    ValidationError,
    Which,
)
from tramontane_testkit.data import data_folder
from tramontane_testkit.models import EOS, IM_START, save_tokenizer, tiny_llama

ENDS = {ord(char): 6.0 for char in '"]}'} | {ord(char): -4.0 for char in " \n\t\r\\"}
"""Makes a random model come to an end within a few hundred tokens."""

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {"n": {"type": "integer", "minimum": 1, "maximum": 99}},
                "required": ["n"],
                "additionalProperties": False,
            },
        },
    }
    for name in ("one", "two")
]
TEMPLATE = (
    "{% for t in tools or [] %}{{ t.function.name }} <tool_call></tool_call>{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    directory = tmp_path_factory.mktemp("model") / "tiny"
    tiny_llama(directory, max_position_embeddings=4096)
    save_tokenizer(directory)
    with Runner(
        which=Which.Plain(model_id=str(directory)), seed=7, chat_template=TEMPLATE, max_seqs=8
    ) as runner:
        yield runner


def ask(runner: Runner, **fields: Any) -> ChatCompletionResponse:
    settings = {"messages": "Go", "temperature": 1.0, "max_tokens": 1500, "logit_bias": ENDS}
    response = runner.send_chat_completion_request({**settings, **fields})
    assert isinstance(response, ChatCompletionResponse)
    return response


def texts(response: ChatCompletionResponse) -> list[str]:
    for choice in response.choices:
        assert choice.finish_reason == "stop"
    return [choice.message.content or "" for choice in response.choices]


def test_a_regular_expression(runner: Runner) -> None:
    pattern = "(yes|no), [0-9]{3,5} [a-zé]+!"
    for text in texts(ask(runner, grammar=pattern, grammar_type="regex", n_choices=4)):
        assert re.fullmatch(pattern, text)


def test_lark(runner: Runner) -> None:
    grammar = 'start: item ("," item)*\nitem: /[a-c]/ "=" NUMBER\nNUMBER: /[1-9][0-9]?/'
    for text in texts(ask(runner, grammar=grammar, grammar_type="lark", n_choices=4)):
        assert re.fullmatch(r"[a-c]=[1-9][0-9]?(,[a-c]=[1-9][0-9]?)*", text)


def test_llguidance_of_several_grammars(runner: Runner) -> None:
    grammars = [
        {"lark_grammar": 'start: "<" @inner ">"'},
        {"name": "inner", "json_schema": {"type": "boolean"}},
    ]
    grammar = json.dumps({"grammars": grammars})
    (text,) = texts(ask(runner, grammar=grammar, grammar_type="llguidance"))
    assert text in ("<true>", "<false>")


def test_json_schema_and_response_format(runner: Runner) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 9}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    forms: list[dict[str, Any]] = [
        {"grammar": json.dumps(schema), "grammar_type": "json_schema"},
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "person", "schema": schema, "strict": True},
            }
        },
    ]
    for form in forms:
        for text in texts(ask(runner, **form, n_choices=3)):
            jsonschema.validate(json.loads(text), schema)
    (text,) = texts(ask(runner, response_format={"type": "json_object"}))
    assert isinstance(json.loads(text), dict)
    assert ask(runner, response_format={"type": "text"}, max_tokens=4).choices


def test_streams_and_logprobs_follow_the_mask(runner: Runner) -> None:
    fields = {"grammar": "[ab]{20}", "grammar_type": "regex", "seed": 5, "temperature": 1.0}
    whole = ask(runner, **fields, logprobs=True, top_logprobs=5)
    (text,) = texts(whole)
    assert re.fullmatch("[ab]{20}", text)
    assert whole.choices[0].logprobs is not None
    entries = whole.choices[0].logprobs.content or []
    assert len(entries) == 20
    for entry in entries:
        assert {top.token for top in entry.top_logprobs} <= {"a", "b"}
        total = sum(2.718281828**top.logprob for top in entry.top_logprobs)
        assert total == pytest.approx(1, abs=1e-3)
    stream = runner.send_chat_completion_request(
        {"messages": "Go", "logit_bias": ENDS, **fields, "stream": True}
    )
    said = "".join(chunk.choices[0].delta.content or "" for chunk in stream)  # type: ignore[union-attr]
    assert said == text


def test_several_choices_are_streamed_each_in_the_grammar(runner: Runner) -> None:
    stream = runner.send_chat_completion_request(
        {
            "messages": "Go",
            "grammar": "[a-z]{12}",
            "grammar_type": "regex",
            "n_choices": 4,
            "temperature": 1.0,
            "stream": True,
        }
    )
    said = [""] * 4
    for chunk in stream:  # type: ignore[union-attr]
        for choice in chunk.choices:  # type: ignore[union-attr]
            said[choice.index] += choice.delta.content or ""  # type: ignore[union-attr]
    assert all(re.fullmatch("[a-z]{12}", text) for text in said)
    assert len(set(said)) == 4


def test_completions_follow_grammars_too(runner: Runner) -> None:
    response = runner.send_completion_request(
        CompletionRequest("1+1=", grammar="[0-9]", grammar_type="regex", max_tokens=5)
    )
    assert isinstance(response, CompletionResponse)
    assert response.choices[0].text.isdigit()
    assert response.choices[0].finish_reason == "stop"


def test_greedy_takes_the_likeliest_allowed_token(runner: Runner) -> None:
    first, second = (
        texts(ask(runner, grammar="[0-9]{8}", grammar_type="regex", temperature=0.0))
        for _ in range(2)
    )
    assert first == second


def test_ignoring_the_end_does_not_leave_the_grammar(runner: Runner) -> None:
    (text,) = texts(ask(runner, grammar="abc", grammar_type="regex", ignore_eos=True))
    assert text == "abc"


def test_max_tokens_still_ends_an_answer(runner: Runner) -> None:
    response = ask(runner, grammar="a{50}", grammar_type="regex", max_tokens=7)
    assert response.choices[0].finish_reason == "length"
    assert response.choices[0].message.content == "a" * 7


@pytest.mark.parametrize(
    ("grammar", "kind", "told"),
    [
        ("[0-9", "regex", "unclosed character class"),
        ("start: nothing_there", "lark", "nothing_there"),
        ("{", "json_schema", "no valid JSON"),
        ('{"type": "strin"}', "json_schema", "strin"),
        ('{"a": 1}', "llguidance", "grammars"),
    ],
)
def test_grammars_that_are_none(runner: Runner, grammar: str, kind: str, told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        ask(runner, grammar=grammar, grammar_type=kind)
    with pytest.raises(ValidationError):
        ask(runner, response_format={"type": "yaml"})
    assert texts(ask(runner, grammar="ok", grammar_type="regex")) == ["ok"]


def test_a_grammar_too_complex_to_follow_fails_alone(runner: Runner) -> None:
    with pytest.raises(EngineError, match="too many expressions") as caught:
        ask(runner, grammar="a{1000000000}", grammar_type="regex")
    assert len(str(caught.value)) < 300
    assert texts(ask(runner, grammar="ok", grammar_type="regex")) == ["ok"]


# -- together with tools and reasoning ---------------------------------------------------------


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "two"}}])
def test_a_call_that_must_be(runner: Runner, choice: Any) -> None:
    response = ask(
        runner, tool_schemas=TOOLS, tool_choice=choice, n_choices=6, logit_bias=ENDS | {260: 9.0}
    )
    for one in response.choices:
        assert one.finish_reason == "tool_calls"
        assert one.message.content is None
        for call in one.message.tool_calls or ():
            assert call.function.name in (("one", "two") if choice == "required" else ("two",))
            arguments = json.loads(call.function.arguments)
            assert set(arguments) == {"n"}
            assert 1 <= arguments["n"] <= 99


def test_either_a_call_or_an_answer_in_the_grammar(runner: Runner) -> None:
    seen = set()
    for seed in range(12):
        response = ask(runner, tool_schemas=TOOLS, grammar="x[yz]", grammar_type="regex", seed=seed)
        (choice,) = response.choices
        seen.add(choice.finish_reason)
        if choice.finish_reason == "stop":
            assert choice.message.content in ("xy", "xz")
        else:
            assert choice.message.tool_calls
    assert seen == {"stop", "tool_calls"}


def test_strict_tools_leave_text_free(runner: Runner) -> None:
    strict = [{**t, "function": {**t["function"], "strict": True}} for t in TOOLS]
    (choice,) = ask(runner, tool_schemas=strict, max_tokens=40, logit_bias=None, seed=3).choices
    assert choice.message.tool_calls is None
    assert len(set(choice.message.content or "")) > 10


def test_the_grammar_begins_after_the_reasoning(runner: Runner, model_dir: Path) -> None:
    template = TEMPLATE + "<think>\n{# </think> #}"
    with Runner(
        which=Which.Plain(model_id=str(model_dir)), chat_template=template, seed=1
    ) as thinker:
        # A random model does not close its reasoning; the grammar must not touch it, and no end
        # of turn may cut it short.
        response = thinker.send_chat_completion_request(
            ChatCompletionRequest(
                "Go", grammar="[0-9]{4}", grammar_type="regex", temperature=1.0, max_tokens=60
            )
        )
    assert isinstance(response, ChatCompletionResponse)
    message = response.choices[0].message
    assert message.reasoning_content
    assert not message.content
    assert response.choices[0].finish_reason == "length"


def test_thoughts_are_free_and_the_answer_is_not(tmp_path: Path) -> None:
    """A model that likes to close its reasoning: what follows is in the grammar, in every choice,
    whole and streamed."""
    tiny_llama(tmp_path)
    save_tokenizer(tmp_path)
    file = tmp_path / "tokenizer.json"
    tokenizer = json.loads(file.read_text(encoding="utf-8").replace("<|im_start|>", "</think>"))
    for token in tokenizer["added_tokens"]:
        token["special"] = token["content"] != "</think>"
    file.write_text(json.dumps(tokenizer), encoding="utf-8")
    which = Which.Plain(model_id=str(tmp_path))
    fields: dict[str, Any] = {
        "messages": "Go",
        "grammar": "[0-9]{4}",
        "grammar_type": "regex",
        "temperature": 1.0,
        "max_tokens": 400,
        "logit_bias": {IM_START: 4.0, EOS: 4.0},
        "n_choices": 4,
        "seed": 11,
    }
    template = TEMPLATE + "<think>\n{# </think> #}"
    with Runner(which=which, chat_template=template, max_seqs=4) as thinker:
        whole = thinker.send_chat_completion_request({**fields, "logprobs": True})
        assert isinstance(whole, ChatCompletionResponse)
        stream = thinker.send_chat_completion_request({**fields, "stream": True})
        said = [""] * 4
        for chunk in stream:  # type: ignore[union-attr]
            for choice in chunk.choices:  # type: ignore[union-attr]
                said[choice.index] += choice.delta.content or ""  # type: ignore[union-attr]
    for choice in whole.choices:
        assert choice.finish_reason == "stop"
        assert choice.message.reasoning_content
        assert re.fullmatch("[0-9]{4}", choice.message.content or "")
        assert choice.message.content == said[choice.index]


# -- many schemas ------------------------------------------------------------------------------


def mask_bench() -> list[Path]:
    folder = data_folder()
    found = [] if folder is None else sorted((folder / "json-schema" / "maskbench").glob("*.json"))
    return found


CASES = mask_bench()


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=[] if number % 12 == 0 else pytest.mark.slow)
        for number, path in enumerate(CASES)
    ],
)
def test_mask_bench(runner: Runner, path: Path) -> None:
    """What llguidance compiles, a random model fills in validly."""
    case = json.loads(path.read_text(encoding="utf-8"))
    schema = case["schema"]
    try:
        response = ask(runner, grammar=json.dumps(schema), grammar_type="json_schema", n_choices=2)
    except ValidationError as refused:
        pytest.skip(f"llguidance does not compile it: {str(refused)[:200]}")
    for choice in response.choices:
        assert choice.finish_reason in ("stop", "length")
        if choice.finish_reason == "stop":
            jsonschema.validate(json.loads(choice.message.content or ""), schema)
