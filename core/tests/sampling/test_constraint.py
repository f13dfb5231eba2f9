"""Grammars followed token by token: instances of schemas, and what comes before a grammar."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tramontane.api import ChatCompletionRequest
from tramontane.errors import EngineError, ValidationError
from tramontane.sampling.constraint import Constraint, Prelude
from tramontane.text.grammar import GrammarCompiler, answer_grammar
from tramontane.text.tokenizer import Tokenizer
from tramontane_testkit.data import data_folder
from tramontane_testkit.models import EOS, IM_START, VOCAB_SIZE, byte_tokenizer

TOKENIZER = Tokenizer(byte_tokenizer(), bos_token="<s>", eos_token="</s>")
COMPILER = GrammarCompiler(TOKENIZER, VOCAB_SIZE, frozenset([EOS]))


def constraint(grammar: str, kind: str, prelude: Prelude | None = None) -> Constraint:
    request = ChatCompletionRequest("", grammar=grammar, grammar_type=kind)
    source = answer_grammar(request)
    assert source is not None
    return Constraint(
        COMPILER.matcher(source),
        vocab_size=VOCAB_SIZE,
        token_bytes=TOKENIZER.token_bytes,
        encode=lambda text: TOKENIZER.encode(text, add_special_tokens=False),
        eos_token_ids=frozenset([EOS]),
        prelude=prelude,
    )


def allowed(rules: Constraint) -> set[int] | None:
    mask = rules.allowed()
    return None if mask is None else set(mask.nonzero()[:, 0].tolist())


def follow(rules: Constraint, text: str) -> None:
    for byte in text.encode():
        rules.advance(byte)


def test_a_mask_for_each_token() -> None:
    rules = constraint("a[bc]+", "regex")
    assert allowed(rules) == {ord("a")}
    rules.advance(ord("a"))
    assert allowed(rules) == {ord("b"), ord("c")}
    rules.advance(ord("b"))
    assert allowed(rules) == {ord("b"), ord("c"), EOS}
    assert not rules.finished
    with pytest.raises(EngineError, match="does not allow"):
        rules.advance(ord("z"))


def test_the_end_is_known() -> None:
    rules = constraint("ab", "regex")
    follow(rules, "ab")
    assert rules.finished


def test_one_compiled_grammar_serves_many_answers() -> None:
    first, second = constraint("x[0-9]y", "regex"), constraint("x[0-9]y", "regex")
    follow(first, "x1y")
    assert first.finished
    assert allowed(second) == {ord("x")}


def test_inside_the_reasoning_only_the_end_of_turn_is_forbidden() -> None:
    rules = constraint("[0-9]", "regex", Prelude(b"</think>", inside=True))
    assert allowed(rules) == set(range(VOCAB_SIZE)) - {EOS}
    follow(rules, "I think <b>7</th no")
    assert allowed(rules) == set(range(VOCAB_SIZE)) - {EOS}
    follow(rules, "</think>")
    assert allowed(rules) == {*map(ord, "0123456789")}


def test_reasoning_that_the_model_may_open() -> None:
    prelude = Prelude(b"</think>", opening=frozenset([IM_START]))
    rules = constraint("[01]", "regex", prelude)
    assert allowed(rules) == {ord("0"), ord("1"), IM_START}
    rules.advance(IM_START)
    assert allowed(rules) == set(range(VOCAB_SIZE)) - {EOS}
    follow(rules, "</think>")
    assert allowed(rules) == {ord("0"), ord("1")}
    other = constraint("[01]{2}", "regex", prelude)
    other.advance(ord("0"))
    assert allowed(other) == {ord("0"), ord("1")}


def test_a_stop_inside_where_it_is_allowed() -> None:
    rules = constraint("[0-9]", "regex", Prelude(b"final", inside=True, may_stop=True))
    assert allowed(rules) is None


def in_order(instance: Any, schema: Any, root: Any) -> bool:
    """Whether all keys come as the schema lists them, further ones last: llguidance demands it."""
    if not isinstance(schema, dict):
        return True
    while "$ref" in schema:
        target = root
        for step in schema["$ref"].removeprefix("#").strip("/").split("/"):
            target = target[step] if step else target
        schema = target
    branches = [b for key in ("allOf", "anyOf", "oneOf") for b in schema.get(key, ())]
    if isinstance(instance, list):
        items = schema.get("items", True)
        return all(in_order(item, items, root) for item in instance)
    if not isinstance(instance, dict):
        return True
    known = list(schema.get("properties", {}))
    places = [known.index(key) if key in known else len(known) for key in instance]
    below = (
        in_order(instance[key], schema["properties"][key], root) for key in known if key in instance
    )
    return (
        places == sorted(places)
        and all(below)
        and all(in_order(instance, branch, root) for branch in branches)
    )


def cases() -> list[Path]:
    folder = data_folder()
    return [] if folder is None else sorted((folder / "json-schema" / "maskbench").glob("*.json"))


@pytest.mark.parametrize("path", cases(), ids=lambda path: path.stem)
def test_instances_are_accepted_or_refused(path: Path) -> None:
    """A valid instance passes token by token, an invalid one does not get through."""
    case: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    request = ChatCompletionRequest(
        "", grammar=json.dumps(case["schema"]), grammar_type="json_schema"
    )
    source = answer_grammar(request)
    assert source is not None
    try:
        COMPILER.matcher(source)
    except ValidationError as refused:
        pytest.skip(f"llguidance does not compile it: {str(refused)[:200]}")
    for test in case["tests"]:
        text = json.dumps(test["data"], ensure_ascii=False)
        tokens = TOKENIZER.encode(text, add_special_tokens=False)
        matcher = COMPILER.matcher(source)
        passed = matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()
        if test["valid"]:  # the suite's own verdict, formats included
            in_turn = in_order(test["data"], case["schema"], case["schema"])
            assert passed or not in_turn, text
        else:
            assert not passed, text
