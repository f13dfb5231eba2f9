"""`Turns`: chat requests as a model sees them, and how its answers are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attrs import frozen

from tramontane.api import ChatCompletionRequest, ToolChoice
from tramontane.errors import TemplateError
from tramontane.hooks import PluginManager
from tramontane.hooks.specs import ToolFormatSpec
from tramontane.pipeline.turn_grammar import turn_grammar
from tramontane.sampling.constraint import Prelude
from tramontane.text.chat_template import ChatTemplate
from tramontane.text.messages import text_messages
from tramontane.text.reasoning import CLOSE, OPEN, ReasoningSplitter
from tramontane.text.tokenizer import Tokenizer
from tramontane.text.tool_calls import choose_format, shown_tokens
from tramontane.text.turn import TurnReader


@frozen
class Turn:
    """A chat request as the model sees it.

    Attributes:
        source: text of the chat template.
        prompt: what it rendered.
        tools: those offered.
        tool_format: how calls are written in the answer; None when none are looked for.
        grammar: what the answer must be, in llguidance's form; None for any text.
        prelude: what comes before the grammar.
    """

    source: str
    prompt: str
    tools: list[dict[str, Any]]
    tool_format: ToolFormatSpec | None
    grammar: str | None
    prelude: Prelude | None


class Turns:
    """Renders prompts by one model's template, and reads what comes of them.

    Args:
        model_id: shown in errors.
        template: None when the model has none.
        tokenizer: the model's.
        plugins: where tool formats are looked up.
        mark: writes a marker of a tool format for a grammar.
    """

    def __init__(
        self,
        model_id: str,
        template: ChatTemplate | None,
        tokenizer: Tokenizer,
        plugins: PluginManager,
        mark: Callable[[str], str],
    ) -> None:
        self._model_id = model_id
        self._template = template
        self._tokenizer = tokenizer
        self._plugins = plugins
        self._mark = mark

    @property
    def shows_tools(self) -> bool:
        """Whether the template has a place for tools."""
        return self._template is not None and self._template.mentions_tools

    def of(self, request: ChatCompletionRequest) -> Turn:
        """Render the prompt, and find out how to read the answer to it.

        Raises:
            TemplateError: there is no template, or none that shows tools.
            RequestError: messages, tools or grammar are not what they should be.
        """
        if self._template is None:
            raise TemplateError(
                f"{self._model_id} has no chat template: pass chat_template=... to the Runner, or "
                f"use send_completion_request, which needs none"
            )
        tools = None if request.tool_choice is ToolChoice.NoTools else request.tool_schemas or None
        if tools and not self._template.mentions_tools:
            raise TemplateError(
                f"tools were offered, but the chat template of {self._model_id} shows the model "
                f"none: set tool_choice to none, or give the Runner a chat_template that does"
            )
        effort = request.reasoning_effort
        prompt = self._template.render(
            text_messages(request.messages),
            tools=tools,
            enable_thinking=request.enable_thinking,
            reasoning_effort=None if effort is None else effort.value,
            **(request.chat_template_kwargs or {}),
        )
        source = self._template.source(tools=bool(tools))
        found = choose_format(self._plugins.specs("tool_formats"), source)
        used = found is not None and (bool(tools) or found.whole_answer)
        spec = found if used else None
        grammar = turn_grammar(
            request,
            tools or [],
            calls=None if spec is None else self._plugins.resolve(spec),
            whole_answer=spec is not None and spec.whole_answer,
            mark=self._mark,
            model_id=self._model_id,
        )
        prelude = None if grammar is None else self._prelude(request, source, prompt, spec)
        return Turn(source, prompt, tools or [], spec, grammar, prelude)

    def reader(self, turn: Turn) -> TurnReader:
        """For one answer: tells its reasoning, text and tool calls apart."""
        spec = turn.tool_format
        calls = None if spec is None else self._plugins.resolve(spec)(turn.tools)
        return TurnReader(self._splitter(turn), calls)

    def shown(self, turn: Turn) -> frozenset[int]:
        """Special tokens that the answer is read by, and that must not be left out of it."""
        shown = shown_tokens(turn.tool_format, self._tokenizer)
        if self._splitter(turn) is None:
            return shown
        tags = (self._tokenizer.token_to_id(tag) for tag in (OPEN, CLOSE))
        return shown | {token_id for token_id in tags if token_id is not None}

    def _prelude(
        self,
        request: ChatCompletionRequest,
        source: str,
        prompt: str,
        spec: ToolFormatSpec | None,
    ) -> Prelude | None:
        """What comes before the grammar: the reasoning, if this model thinks."""
        if spec is not None and spec.whole_answer:
            return None  # the grammar covers it
        splitter = ReasoningSplitter.for_prompt(source, prompt)
        if splitter is None:
            return None
        end = CLOSE.encode()
        if splitter.inside:
            return Prelude(end, inside=True)
        opening = self._tokenizer.token_to_id(OPEN)
        if request.enable_thinking is False or opening is None or prompt.rstrip().endswith(CLOSE):
            return None
        return Prelude(end, opening=frozenset([opening]))

    def _splitter(self, turn: Turn) -> ReasoningSplitter | None:
        """Tells reasoning from the rest; None where there is none or the format does it itself."""
        if turn.tool_format is not None and turn.tool_format.whole_answer:
            return None
        return ReasoningSplitter.for_prompt(turn.source, turn.prompt)
