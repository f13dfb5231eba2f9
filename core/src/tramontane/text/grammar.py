"""Grammars of answers: from a request to something that llguidance can follow, compiled once.

The language of each type is that of llguidance (https://github.com/guidance-ai/llguidance).
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from tramontane.api import ChatCompletionRequest, CompletionRequest, GrammarType
from tramontane.errors import MissingPluginError, ValidationError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

    from tramontane.text.tokenizer import Tokenizer

CACHED = 64
"""Compiled grammars that a model keeps; the ones used last."""

ANSWER = "answer"
"""Name of the request's own grammar beside one of tool calls, if it has none."""

_ANY_TEXT = r"ANY_TEXT: /(.|\n)*/"


def answer_grammar(request: ChatCompletionRequest | CompletionRequest) -> str | None:
    """llguidance's form of what a request wants its answer to be; None for any text.

    Raises:
        ValidationError: ``grammar`` or ``response_format`` cannot be understood.
    """
    if request.grammar is not None and request.grammar_type is not None:
        return _of_type(request.grammar_type, request.grammar)
    response_format = getattr(request, "response_format", None)
    if response_format is None:
        return None
    kind = response_format.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return _of_type(GrammarType.JsonSchema, '{"type": "object"}')
    if kind == "json_schema":
        named = response_format.get("json_schema")
        schema = named.get("schema") if isinstance(named, Mapping) else None
        if not isinstance(schema, Mapping | bool):
            raise ValidationError(
                'response_format of type json_schema must read {"type": "json_schema", '
                f'"json_schema": {{"name": ..., "schema": {{...}}}}}}, not {response_format!r}'
            )
        return _of_type(GrammarType.JsonSchema, json.dumps(schema))
    raise ValidationError(
        f"the type of response_format must be text, json_object or json_schema, not {kind!r}"
    )


def regex_grammar(pattern: str) -> str:
    """llguidance's form of a regular expression."""
    return _of_type(GrammarType.Regex, pattern)


def with_calls(call_rules: str, answer: str | None) -> str:
    """A grammar of tool calls, or of either calls or an answer.

    Args:
        call_rules: Lark rules with the entry ``tool_call``.
        answer: llguidance's form of the alternative; None when there must be a call.
    """
    others: list[dict[str, Any]] = []
    start = "start: tool_call"
    if answer is not None:
        others = json.loads(answer)["grammars"]
        others[0].setdefault("name", ANSWER)
        start += f" | @{others[0]['name']}"
    calls = {"name": "calls", "lark_grammar": f"{start}\n{call_rules}\n"}
    return json.dumps({"grammars": [calls, *others]})


def whole_turn(turn_rules: str, call_rules: str | None, answer: str | None) -> str:
    """A grammar of turns that are more than their answer.

    Args:
        turn_rules: Lark rules with the entry ``start``, which may use ``answer``, ``tool_call`` and
            ``ANY_TEXT``.
        call_rules: Lark rules with the entry ``tool_call``; None when there are no calls.
        answer: llguidance's form of the answer; None for any text.
    """
    others: list[dict[str, Any]] = []
    content = "ANY_TEXT"
    if answer is not None:
        others = json.loads(answer)["grammars"]
        others[0].setdefault("name", ANSWER)
        content = f"@{others[0]['name']}"
    lines = [turn_rules, f"answer: {content}", _ANY_TEXT, call_rules or ""]
    turn = {"name": "turn", "lark_grammar": "\n".join(lines)}
    return json.dumps({"grammars": [turn, *others]})


def text_with_calls(
    call_grammar: Callable[[Callable[[str], str]], str | None],
    mark: Callable[[str], str],
    trigger: str,
) -> str | None:
    """A grammar of any text with calls in it, each of which follows its rules.

    Args:
        call_grammar: Lark rules with the entry ``tool_call``, given how to write markers.
        mark: writes the other markers.
        trigger: the marker that a call begins with; text in which it stands is a call.
    """
    marked = mark(trigger)
    special = not marked.startswith('"')

    def with_text(text: str) -> str:
        if text != trigger:
            return mark(text)
        return f"ANY_TEXT {marked}" if special else "call_begins"

    rules = call_grammar(with_text)
    if rules is None:
        return None
    lines = ["start: tool_call* ANY_TEXT", _ANY_TEXT, rules]
    if not special:
        lines.append(f"call_begins[lazy]: ANY_TEXT {marked}")
    return json.dumps({"grammars": [{"name": "calls", "lark_grammar": "\n".join(lines)}]})


def _of_type(kind: GrammarType, text: str) -> str:
    matcher = _llguidance().LLMatcher
    if kind is GrammarType.Regex:
        made: str = matcher.grammar_from_regex(text)
    elif kind is GrammarType.Lark:
        made = matcher.grammar_from_lark(text)
    elif kind is GrammarType.JsonSchema:
        made = matcher.grammar_from_json_schema(_json(text, (dict, bool), "a JSON schema"))
    else:
        value = _json(text, (dict,), "a llguidance grammar")
        if not isinstance(json.loads(value).get("grammars"), list):
            raise ValidationError('a llguidance grammar must read {"grammars": [...]}')
        made = value
    return made


def _json(text: str, kinds: tuple[type, ...], what: str) -> str:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as cause:
        raise ValidationError(f"grammar is {what}, but no valid JSON: {cause}") from cause
    if not isinstance(value, kinds):
        raise ValidationError(f"{what} must be a JSON object, not {text!r:.60}")
    return json.dumps({"allOf": [value]}) if isinstance(value, bool) else text


class GrammarCompiler:
    """Compiles grammars for one model's vocabulary, each once. Thread-safe.

    Args:
        tokenizer: gives the bytes of each token.
        vocab_size: tokens the model can choose among.
        eos_token_ids: what may follow a complete answer.
    """

    def __init__(
        self, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: frozenset[int]
    ) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_token_ids = sorted(eos_token_ids)
        self._vocabulary: LLTokenizer | None = None
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()
        self._lock = threading.Lock()

    def matcher(self, grammar: str) -> LLMatcher:
        """A matcher at the beginning of ``grammar``, for one answer.

        Raises:
            ValidationError: the grammar is not valid or too large; the message is llguidance's.
        """
        with self._lock:
            compiled = self._compiled.get(grammar)
            if compiled is None:
                compiled = self._compile(grammar)
                self._compiled[grammar] = compiled
                if len(self._compiled) > CACHED:
                    self._compiled.popitem(last=False)
            else:
                self._compiled.move_to_end(grammar)
            return compiled.deep_copy()

    def mark(self, text: str) -> str:
        """Lark for a marker of a tool format: its special token, if the vocabulary has one."""
        token_id = self._tokenizer.token_to_id(text)
        if token_id is not None and token_id in self._tokenizer.special_ids:
            return f"<[{token_id}]>"
        return json.dumps(text, ensure_ascii=False)

    def _compile(self, grammar: str) -> LLMatcher:
        llguidance = _llguidance()
        if self._vocabulary is None:
            wrapper = llguidance.TokenizerWrapper(
                _Vocabulary(self._tokenizer, self._vocab_size, self._eos_token_ids)
            )
            self._vocabulary = llguidance.LLTokenizer(wrapper, eos_token=self._eos_token_ids)
        matcher: LLMatcher = llguidance.LLMatcher(self._vocabulary, grammar, log_level=0)
        if matcher.is_error():
            raise ValidationError(f"the grammar cannot be used: {matcher.get_error().strip()}")
        return matcher


class _Vocabulary:
    """A tokenizer as llguidance takes it."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: list[int]) -> None:
        self.eos_token_id = eos_token_ids[0]
        self.bos_token_id = tokenizer.bos_token_id
        self.tokens = [tokenizer.token_bytes(token_id) for token_id in range(vocab_size)]
        special = tokenizer.special_ids | set(eos_token_ids)
        self.special_token_ids = sorted(i for i in special if i < vocab_size)
        self._encode: Callable[..., list[int]] = tokenizer.encode

    def __call__(self, text: str) -> list[int]:
        return self._encode(text, add_special_tokens=False)


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError as cause:
        raise MissingPluginError(
            "grammars, response_format and required tool calls need llguidance: "
            "pip install llguidance"
        ) from cause
    return llguidance
