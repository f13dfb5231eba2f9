"""Requests. Names, order and defaults are those of the mistralrs SDK; a value left out is filled
from the model's ``generation_config.json`` (see `tramontane.sampling.params`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import define, field

from tramontane.api import validators as check
from tramontane.api.config import WebSearchOptions
from tramontane.api.convert import Record, structure
from tramontane.api.enums import GrammarType, ReasoningEffort, ToolChoice
from tramontane.errors import ValidationError

MAX_TOP_LOGPROBS = 20

Messages = str | list[dict[str, Any]]

FINITE = check.number()
POSITIVE = check.number(gt=0)
NOT_NEGATIVE = check.number(ge=0)
SHARE = check.number(gt=0, le=1)
FRACTION = check.number(ge=0, lt=1)
INTEGER = check.number(integer=True)
COUNT = check.number(ge=1, integer=True)
COUNT_OR_ZERO = check.number(ge=0, integer=True)
REQUIRED_COUNT = check.number(ge=1, integer=True, optional=False)
TOP_LOGPROBS = check.number(ge=0, le=MAX_TOP_LOGPROBS, integer=True)
DRY_BASE = check.number(ge=1)
FLAG = check.flag()
FLAG_OR_NONE = check.flag(optional=True)
FILLED = check.text(filled=True)
NAME = check.text(optional=False, filled=True)
TEXTS = check.texts()


def _check_top_k(instance: object, attribute: Any, value: Any) -> None:
    if value != -1 or isinstance(value, bool):
        COUNT(instance, attribute, value)


def _grammar_type(value: Any) -> Any:
    return check.member(GrammarType, value)


def _reasoning_effort(value: Any) -> Any:
    return check.member(ReasoningEffort, value)


def _tool_choice(value: Any) -> Any:
    """A `ToolChoice`, or ``{"type": "function", "function": {"name": ...}}`` for one tool."""
    if not isinstance(value, Mapping):
        return check.member(ToolChoice, value)
    function = value.get("function")
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ValidationError(
            'tool_choice must be none, auto, required or {"type": "function", "function": '
            f'{{"name": ...}}}}, not {value!r}'
        )
    return dict(value)


def _messages(value: Any) -> Any:
    if isinstance(value, str):
        return value
    if not isinstance(value, Sequence) or not value:
        raise ValidationError(
            f"messages must be a string or a list of messages that is not empty, not {value!r}"
        )
    for index, message in enumerate(value):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise ValidationError(
                f'messages[{index}] must read {{"role": ..., "content": ...}}, not {message!r}'
            )
    return [dict(message) for message in value]


def _web_search(value: Any) -> Any:
    return None if value is None else structure(value, WebSearchOptions)


def _check_together(request: ChatCompletionRequest | CompletionRequest) -> None:
    """Fields that only make sense in company."""
    if (request.grammar is None) != (request.grammar_type is None):
        given = "grammar" if request.grammar_type is None else "grammar_type"
        raise ValidationError(f"grammar and grammar_type go together; only {given} was given")
    if request.tool_choice not in (None, ToolChoice.NoTools, ToolChoice.Auto):
        names = [tool["function"]["name"] for tool in request.tool_schemas or ()]
        if isinstance(request.tool_choice, dict):
            wanted = request.tool_choice["function"]["name"]
            if names and wanted not in names:
                raise ValidationError(
                    f"tool_choice names {wanted!r}; tool_schemas has {', '.join(names)}"
                )


@define
class ChatCompletionRequest(Record):
    """A conversation to be continued by the model.

    Attributes:
        messages: ``{"role", "content"}`` dicts in order, content a string or a list of typed
            parts; or a string, which is one user message.
        model: id of a model of the runner; ``"default"`` for its default model.
        logprobs: return the log probability of each token.
        n_choices: independent answers to generate.
        logit_bias: token id → number added to its logit.
        top_logprobs: with ``logprobs``, most likely alternatives told for each token, at most 20;
            1 when left out.
        max_tokens: tokens to generate at most; None for what the context has room for.
        presence_penalty, frequency_penalty: taken from the logit of a token that occurs in the
            context, once, and once for each occurrence.
        repetition_penalty: divides the positive logits (and multiplies the negative ones) of
            tokens that occur in the context; 1 does nothing.
        stop_seqs: strings that end the answer; they are not part of it.
        temperature: divides the logits; 0 always takes the most likely token.
        top_p: sample among the most likely tokens that together reach this probability, (0, 1].
        top_k: sample among this many most likely tokens; -1 for all.
        stream: return chunks as they are generated.
        grammar, grammar_type: force the answer into a language; see `GrammarType`.
        min_p: leave out tokens less likely than this share of the most likely one, [0, 1).
        tool_schemas: OpenAI tools, as JSON strings or dicts.
        tool_choice: a `ToolChoice`, or one tool by name.
        dry_multiplier: strength of the DRY penalty on repeated sequences; None or 0 for none.
        dry_base: growth of that penalty with the length of the repetition; 1.75 when left out.
        dry_allowed_length: repetitions shorter than this are free; 2 when left out.
        dry_sequence_breakers: strings no repetition extends across; newline, colon, double quote
            and asterisk when left out.
        web_search_options: let the model search the web, when the runner allows it.
        enable_thinking: whether a reasoning model thinks first; None for the model's habit.
        truncate_sequence: drop the oldest tokens of a prompt that is too long, instead of
            refusing it.
        reasoning_effort: off, low, medium, high or xhigh.
        max_tool_rounds: automatic tool rounds at most; None for the runner's own limit.
        ignore_eos: go on past the model's end of turn, to ``max_tokens``.
        adapter: alias or generation of a loaded LoRA adapter; None for the base model.
        response_format: OpenAI's ``{"type": "text" | "json_object" | "json_schema", ...}``.
        chat_template_kwargs: further variables for the chat template.
        seed: makes this answer reproducible, whatever else runs.
    """

    messages: Messages = field(converter=_messages)
    model: str = field(default="default", validator=NAME)
    logprobs: bool = field(default=False, validator=FLAG)
    n_choices: int = field(default=1, validator=REQUIRED_COUNT)
    logit_bias: dict[int, float] | None = field(default=None, converter=check.logit_bias)
    top_logprobs: int | None = field(default=None, validator=TOP_LOGPROBS)
    max_tokens: int | None = field(default=None, validator=COUNT)
    presence_penalty: float | None = field(default=None, validator=FINITE)
    frequency_penalty: float | None = field(default=None, validator=FINITE)
    repetition_penalty: float | None = field(default=None, validator=POSITIVE)
    stop_seqs: list[str] | None = field(default=None, converter=check.as_list, validator=TEXTS)
    temperature: float | None = field(default=None, validator=NOT_NEGATIVE)
    top_p: float | None = field(default=None, validator=SHARE)
    top_k: int | None = field(default=None, validator=_check_top_k)
    stream: bool = field(default=False, validator=FLAG)
    grammar: str | None = field(default=None, validator=FILLED)
    grammar_type: GrammarType | None = field(default=None, converter=_grammar_type)
    min_p: float | None = field(default=None, validator=FRACTION)
    tool_schemas: list[dict[str, Any]] | None = field(default=None, converter=check.tool_schemas)
    tool_choice: ToolChoice | dict[str, Any] | None = field(default=None, converter=_tool_choice)
    dry_multiplier: float | None = field(default=None, validator=NOT_NEGATIVE)
    dry_base: float | None = field(default=None, validator=DRY_BASE)
    dry_allowed_length: int | None = field(default=None, validator=COUNT_OR_ZERO)
    dry_sequence_breakers: list[str] | None = field(
        default=None, converter=check.as_list, validator=TEXTS
    )
    web_search_options: WebSearchOptions | None = field(default=None, converter=_web_search)
    enable_thinking: bool | None = field(default=None, validator=FLAG_OR_NONE)
    truncate_sequence: bool = field(default=False, validator=FLAG)
    reasoning_effort: ReasoningEffort | None = field(default=None, converter=_reasoning_effort)
    max_tool_rounds: int | None = field(default=None, kw_only=True, validator=COUNT_OR_ZERO)
    ignore_eos: bool = field(default=False, kw_only=True, validator=FLAG)
    adapter: str | None = field(default=None, kw_only=True, validator=FILLED)
    response_format: dict[str, Any] | None = field(
        default=None, kw_only=True, validator=check.mapping()
    )
    chat_template_kwargs: dict[str, Any] | None = field(
        default=None, kw_only=True, validator=check.mapping()
    )
    seed: int | None = field(default=None, kw_only=True, validator=INTEGER)

    def __attrs_post_init__(self) -> None:
        _check_together(self)
        if self.top_logprobs and not self.logprobs:
            raise ValidationError("top_logprobs is told only with logprobs=True")
        if self.grammar is not None and self.response_format is not None:
            raise ValidationError("grammar and response_format both shape the answer: give one")
        if self.enable_thinking is not None and self.reasoning_effort is not None:
            thinks = self.reasoning_effort is not ReasoningEffort.Off
            if thinks != self.enable_thinking:
                raise ValidationError(
                    f"enable_thinking={self.enable_thinking} contradicts "
                    f"reasoning_effort={self.reasoning_effort.value!r}"
                )


@define
class CompletionRequest(Record):
    """A text to be continued as it stands, without a chat template.

    Attributes:
        prompt: the text.
        model: as in `ChatCompletionRequest`, like every field not told here.
        best_of: answers sampled, of which the ``n_choices`` likeliest are returned.
        echo_prompt: put the prompt before the answer.
        suffix: text put after the answer.
    """

    prompt: str = field(validator=check.text(optional=False))
    model: str = field(default="default", validator=NAME)
    best_of: int = field(default=1, validator=REQUIRED_COUNT)
    echo_prompt: bool = field(default=False, validator=FLAG)
    presence_penalty: float | None = field(default=None, validator=FINITE)
    frequency_penalty: float | None = field(default=None, validator=FINITE)
    repetition_penalty: float | None = field(default=None, validator=POSITIVE)
    logit_bias: dict[int, float] | None = field(default=None, converter=check.logit_bias)
    max_tokens: int | None = field(default=None, validator=COUNT)
    n_choices: int = field(default=1, validator=REQUIRED_COUNT)
    stop_seqs: list[str] | None = field(default=None, converter=check.as_list, validator=TEXTS)
    temperature: float | None = field(default=None, validator=NOT_NEGATIVE)
    top_p: float | None = field(default=None, validator=SHARE)
    suffix: str | None = field(default=None, validator=check.text())
    top_k: int | None = field(default=None, validator=_check_top_k)
    grammar: str | None = field(default=None, validator=FILLED)
    grammar_type: GrammarType | None = field(default=None, converter=_grammar_type)
    min_p: float | None = field(default=None, validator=FRACTION)
    tool_schemas: list[dict[str, Any]] | None = field(default=None, converter=check.tool_schemas)
    tool_choice: ToolChoice | dict[str, Any] | None = field(default=None, converter=_tool_choice)
    dry_multiplier: float | None = field(default=None, validator=NOT_NEGATIVE)
    dry_base: float | None = field(default=None, validator=DRY_BASE)
    dry_allowed_length: int | None = field(default=None, validator=COUNT_OR_ZERO)
    dry_sequence_breakers: list[str] | None = field(
        default=None, converter=check.as_list, validator=TEXTS
    )
    truncate_sequence: bool = field(default=False, validator=FLAG)
    logprobs: bool = field(default=False, kw_only=True, validator=FLAG)
    top_logprobs: int | None = field(
        default=None,
        kw_only=True,
        validator=TOP_LOGPROBS,
    )
    stream: bool = field(default=False, kw_only=True, validator=FLAG)
    ignore_eos: bool = field(default=False, kw_only=True, validator=FLAG)
    adapter: str | None = field(default=None, kw_only=True, validator=FILLED)
    seed: int | None = field(default=None, kw_only=True, validator=INTEGER)

    def __attrs_post_init__(self) -> None:
        _check_together(self)
        if self.top_logprobs and not self.logprobs:
            raise ValidationError("top_logprobs is told only with logprobs=True")


EmbeddingInput = str | list[str] | list[int] | list[list[int]]


def _embedding_input(value: Any) -> Any:
    if isinstance(value, str) and value:
        return value
    items = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else []
    if not items or any(isinstance(item, Sequence) and len(item) == 0 for item in items):
        raise ValidationError("input must hold at least one text, each with something in it")
    if all(isinstance(item, str) for item in items):
        return items
    if all(_is_token(item) for item in items):
        return [int(item) for item in items]
    if all(
        isinstance(item, Sequence) and not isinstance(item, str) and all(map(_is_token, item))
        for item in items
    ):
        return [[int(token) for token in item] for item in items]
    raise ValidationError(
        "input must be a string, a list of strings, a list of token ids (0 to 4294967295) or a "
        "list of such lists, without mixing them"
    )


def _is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**32


@define
class EmbeddingRequest(Record):
    """Texts to be turned into vectors, one each.

    Attributes:
        input: one text or several, or token ids in their place.
        truncate_sequence: drop the end of a text that is too long, instead of refusing it.
    """

    input: EmbeddingInput = field(converter=_embedding_input)
    truncate_sequence: bool = field(default=False, validator=FLAG)

    @property
    def inputs(self) -> list[str] | list[list[int]]:
        """The input as a list of texts or of token id lists."""
        if isinstance(self.input, str):
            return [self.input]
        if isinstance(self.input[0], int):
            return [self.input]
        return self.input
