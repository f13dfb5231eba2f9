"""What a chat request wants its answer to be: a grammar of the whole turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from tramontane.api import ChatCompletionRequest, CompletionRequest, ToolChoice
from tramontane.errors import UnsupportedError, ValidationError
from tramontane.text.grammar import (
    answer_grammar,
    regex_grammar,
    text_with_calls,
    whole_turn,
    with_calls,
)
from tramontane.text.tool_calls.events import Mark, ToolFormat

Tool = Mapping[str, Any]


def forces_call(request: ChatCompletionRequest | CompletionRequest) -> bool:
    """Whether the model must call a tool."""
    return request.tool_choice not in (None, ToolChoice.Auto, ToolChoice.NoTools)


def turn_grammar(
    request: ChatCompletionRequest,
    tools: Sequence[Tool],
    *,
    calls: type[ToolFormat] | None,
    whole_answer: bool,
    mark: Mark,
    model_id: str,
) -> str | None:
    """The request's grammar, a tool call, or either, in llguidance's form; None for any text.

    Args:
        request: for ``grammar``, ``response_format`` and ``tool_choice``.
        tools: those offered.
        calls: how the model writes calls; None where none are looked for.
        whole_answer: whether that format shapes every answer.
        mark: writes the format's markers.
        model_id: shown in errors.

    Raises:
        ValidationError: a grammar that cannot be understood, or no tool to choose.
        UnsupportedError: no grammar covers how the model writes calls.
    """
    answer = answer_grammar(request)
    forced = forces_call(request)
    if forced:
        tools = _chosen(tools, request.tool_choice)
    strict = any(tool["function"].get("strict") is True for tool in tools)
    if not forced and not strict and answer is None:
        return None
    if calls is not None and whole_answer:
        found = _framed(calls, tools if forced else _loosened(tools), answer, forced, mark)
    elif not tools:
        return answer
    elif strict and not forced and answer is None:
        found = None if calls is None else _in_text(calls, _loosened(tools), mark)
        if found is None:
            raise UnsupportedError(
                f"{model_id} writes tool calls in a form in which strict schemas cannot be "
                f"enforced here: leave out strict"
            )
    else:
        rules = None if calls is None else calls.call_grammar(tools, mark)
        found = None if rules is None else with_calls(rules, None if forced else answer)
    if found is None:
        raise UnsupportedError(
            f"{model_id} writes tool calls in a form that no grammar covers here: use "
            f"tool_choice auto, and grammar or response_format only without tools"
        )
    return found


def _framed(
    calls: type[ToolFormat], tools: Sequence[Tool], answer: str | None, forced: bool, mark: Mark
) -> str | None:
    """A turn of which the answer, or a call, is only the last part."""
    endings = ["answer"] * (not forced) + ["tool_call"] * bool(tools)
    turn = calls.turn_grammar(mark, endings=endings)
    rules = calls.call_grammar(tools, mark) if tools else None
    if turn is None or (tools and rules is None):
        return None
    return whole_turn(turn, rules, answer)


def _in_text(calls: type[ToolFormat], tools: Sequence[Tool], mark: Mark) -> str | None:
    """Any answer, in which calls have arguments as the schemas of their tools want them."""
    if calls.TRIGGER:
        return text_with_calls(partial(calls.call_grammar, tools), mark, calls.TRIGGER)
    rules = calls.call_grammar(tools, mark) if calls.NO_CALL else None
    return None if rules is None else with_calls(rules, regex_grammar(calls.NO_CALL))


def _chosen(tools: Sequence[Tool], choice: Any) -> Sequence[Tool]:
    """The tools of which one must be called."""
    if not tools:
        raise ValidationError(f"tool_choice {choice} needs tool_schemas to choose from")
    if not isinstance(choice, Mapping):
        return tools
    name = choice["function"]["name"]
    chosen = [tool for tool in tools if tool["function"]["name"] == name]
    if not chosen:
        raise ValidationError(f"tool_choice names {name!r}, which no tool_schema describes")
    return chosen


def _loosened(tools: Sequence[Tool]) -> list[Tool]:
    """The tools; those that are not strict take any object for arguments."""
    return [
        tool
        if tool["function"].get("strict") is True
        else {"function": {"name": tool["function"]["name"], "parameters": {"type": "object"}}}
        for tool in tools
    ]
