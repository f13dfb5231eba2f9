"""What grammars of calls let a model write, for each family: forced calls, and strict ones."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from tramontane.errors import ValidationError
from tramontane.hooks import plugin_manager
from tramontane.text.grammar import (
    GrammarCompiler,
    regex_grammar,
    text_with_calls,
    whole_turn,
    with_calls,
)
from tramontane.text.tokenizer import Tokenizer
from tramontane_testkit.models import EOS, VOCAB_SIZE, byte_tokenizer

TOKENIZER = Tokenizer(byte_tokenizer(), bos_token="<s>", eos_token="</s>")
COMPILER = GrammarCompiler(TOKENIZER, VOCAB_SIZE, frozenset([EOS]))
PARAMETERS = {
    "type": "object",
    "properties": {
        "a": {"type": "integer"},
        "s": {"type": "string"},
        "e": {"enum": ["x", "y"]},
    },
    "required": ["a", "s"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": PARAMETERS}}
    for name in ("add", "other")
]
J = '{"a": 1, "s": "q\\"}"}'
D, E = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"
CALLS = {
    "hermes": f'<tool_call>\n{{"name": "add", "arguments": {J}}}\n</tool_call>',
    "llama": f'{{"name": "add", "parameters": {J}}}',
    "granite": f'<|tool_call|>[{{"name": "add", "arguments": {J}}}]',
    "phi4": f'<|tool_call|>[{{"name": "add", "arguments": {J}}}]<|/tool_call|>',
    "mistral": f'[TOOL_CALLS][{{"name": "add", "arguments": {J}}}]',
    "mistral_args": f"[TOOL_CALLS]add[ARGS]{J}",
    "deepseek_v3": f"<｜tool▁calls▁begin｜>{D}function<｜tool▁sep｜>add\n```json\n{J}\n```{E}"
    "<｜tool▁calls▁end｜>",
    "deepseek_v31": f"<｜tool▁calls▁begin｜>{D}add<｜tool▁sep｜>{J}{E}<｜tool▁calls▁end｜>",
    "kimi": "<|tool_calls_section_begin|><|tool_call_begin|>functions.add:0"
    f"<|tool_call_argument_begin|>{J}<|tool_call_end|><|tool_calls_section_end|>",
    "harmony": f"<|channel|>commentary to=functions.add <|constrain|>json<|message|>{J}<|call|>",
    "pythonic": '[add(a=1, s="q\\"}")]',
    "qwen_coder": "<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n<parameter=s>\n"
    "two\nlines\n</parameter>\n</function>\n</tool_call>",
    "glm": "<tool_call>add\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n<arg_key>s</arg_key>"
    "\n<arg_value>q</arg_value>\n<arg_key>e</arg_key>\n<arg_value>x</arg_value>\n</tool_call>",
}
AT_THE_BEGINNING = ["llama", "pythonic"]
STRICT = sorted(set(CALLS) - {"harmony", *AT_THE_BEGINNING})


def calls_of(name: str) -> Any:
    manager = plugin_manager()
    return manager.resolve(manager.get("tool_formats", name))


def passes(grammar: str, text: str) -> bool:
    matcher = COMPILER.matcher(grammar)
    tokens = TOKENIZER.encode(text, add_special_tokens=False)
    whole: bool = matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()
    return whole


def spoilt(call: str) -> list[str]:
    """The call with a wrong name, a wrong type, and cut off."""
    return [call.replace("add", "sub"), call.replace("1", "one"), call[: len(call) // 2]]


@pytest.mark.parametrize("name", CALLS)
def test_a_forced_call(name: str) -> None:
    grammar = with_calls(calls_of(name).call_grammar(TOOLS, COMPILER.mark), None)
    assert passes(grammar, CALLS[name])
    for text in ("", "Hello.", *spoilt(CALLS[name])):
        assert not passes(grammar, text), text


@pytest.mark.parametrize("name", CALLS)
def test_what_may_be_written_is_read(name: str) -> None:
    reader = calls_of(name)(TOOLS)
    events = reader.push(CALLS[name]) + reader.flush()
    kinds = {type(event).__name__ for event in events}
    assert kinds == {"CallBegun", "CallArguments"}


@pytest.mark.parametrize("name", STRICT)
def test_strict_calls_in_free_text(name: str) -> None:
    calls = calls_of(name)
    rules = partial(calls.call_grammar, TOOLS)
    grammar = text_with_calls(rules, COMPILER.mark, calls.TRIGGER)
    assert grammar is not None
    call = CALLS[name]
    for text in ("", "Just <b>text</b>.\n", call, f"I look.\n{call}"):
        assert passes(grammar, text), text
    for text in spoilt(call):
        assert not passes(grammar, f"I look.\n{text}"), text


@pytest.mark.parametrize("name", AT_THE_BEGINNING)
def test_strict_calls_that_can_only_begin_the_answer(name: str) -> None:
    calls = calls_of(name)
    rules = calls.call_grammar(TOOLS, COMPILER.mark)
    grammar = with_calls(rules, regex_grammar(calls.NO_CALL))
    for text in ("", "\n", " Hello {you} [there].", CALLS[name]):
        assert passes(grammar, text), text
    for text in spoilt(CALLS[name]):
        assert not passes(grammar, text), text
        assert not passes(grammar, f" {text}"), text


@pytest.mark.parametrize("name", CALLS)
def test_a_tool_without_a_schema_takes_any_arguments(name: str) -> None:
    """As those have it that are not strict, beside others that are."""
    tools = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
    grammar = with_calls(calls_of(name).call_grammar(tools, COMPILER.mark), None)
    assert passes(grammar, CALLS[name])
    assert not passes(grammar, CALLS[name].replace("add", "sub"))


def test_arguments_that_may_be_left_out_take_their_commas_along() -> None:
    parameters = {"properties": {key: {"type": "integer"} for key in "abc"}}
    for required, good, bad in (
        ([], ["", "a=1", "b=1", "a=1, c=1", "a=1, b=1, c=1"], ["a=1,", ", b=1", "b=1, a=1"]),
        (["b"], ["b=1", "a=1, b=1", "b=1, c=1"], ["", "a=1", "a=1, c=1"]),
    ):
        tool = {"function": {"name": "f", "parameters": {**parameters, "required": required}}}
        grammar = with_calls(calls_of("pythonic").call_grammar([tool], COMPILER.mark), None)
        assert [passes(grammar, f"[f({text})]") for text in good] == [True] * len(good)
        assert [passes(grammar, f"[f({text})]") for text in bad] == [False] * len(bad)


def test_a_turn_whose_answer_is_only_its_last_part() -> None:
    calls = calls_of("harmony")
    rules = calls.call_grammar(TOOLS, COMPILER.mark)
    thought = "<|channel|>analysis<|message|>a <b> c.\n<|end|><|start|>assistant"
    final, call = "<|channel|>final<|message|>{}", CALLS["harmony"]

    turn = calls.turn_grammar(COMPILER.mark, endings=["answer", "tool_call"])
    either = whole_turn(turn, rules, regex_grammar("[0-9]+"))
    for text in (final.format(42), thought + thought + final.format(42), call, thought + call):
        assert passes(either, text), text
    for text in ("42", thought, final.format("x"), *map(thought.__add__, spoilt(call))):
        assert not passes(either, text), text

    turn = calls.turn_grammar(COMPILER.mark, endings=["tool_call"])
    forced = whole_turn(turn, rules, None)
    assert passes(forced, thought + call)
    assert not passes(forced, thought + final.format("Hello."))


def test_markers_are_special_tokens_where_there_are_such() -> None:
    assert COMPILER.mark("<|im_start|>") == f"<[{TOKENIZER.token_to_id('<|im_start|>')}]>"
    assert COMPILER.mark("<tool_call>") == '"<tool_call>"'


def test_a_schema_that_is_none() -> None:
    tools = [{"function": {"name": "f", "parameters": {"type": "objekt"}}}]
    rules = calls_of("hermes").call_grammar(tools, COMPILER.mark)
    with pytest.raises(ValidationError, match="objekt"):
        COMPILER.matcher(with_calls(rules, None))
