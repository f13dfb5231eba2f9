"""``tramontane run``: one answer for a prompt, or a conversation."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tramontane_cli.answer import TOO_MANY_ROUNDS, Answer, Screen, stats_line, take
from tramontane_cli.grammars import HELP as GRAMMAR_HELP
from tramontane_cli.grammars import grammar_fields
from tramontane_cli.options import (
    Arch,
    CacheType,
    DeviceLayers,
    Dtype,
    Isq,
    Model,
    TokModel,
    Topology,
)
from tramontane_cli.terminal import is_terminal, load_progress
from tramontane_cli.tool_desk import ToolDesk

EXIT_INTERRUPTED = 130


def run(
    prompt: Annotated[
        list[str] | None,
        typer.Argument(
            help="What to ask; - stands for standard input. Without it: a conversation."
        ),
    ] = None,
    model: Model = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    tool: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODULE:FUNCTION",
            help="Python function that the model may call; may be repeated.",
        ),
    ] = None,
    mcp_config: Annotated[
        Path | None, typer.Option(help="JSON file that names MCP servers whose tools to use.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Run tools without asking.")] = False,
    grammar: Annotated[
        str | None, typer.Option(metavar="KIND:GRAMMAR|FILE", help=GRAMMAR_HELP)
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.", min=0)] = None,
    top_p: Annotated[float | None, typer.Option(help="Nucleus sampling.", min=0, max=1)] = None,
    top_k: Annotated[int | None, typer.Option(help="Keep the k likeliest tokens.", min=1)] = None,
    min_p: Annotated[
        float | None, typer.Option(help="Least share of the likeliest token.", min=0, max=1)
    ] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option(help="Above 1 discourages repetition.", min=0)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer.", min=1)] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="End before this text; may be repeated.")
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the prompt, no template.")] = False,
    stats: Annotated[bool, typer.Option("--stats", help="Say how fast it was.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one answer as JSON.")] = False,
    dtype: Dtype = "auto",
    isq: Isq = None,
    imatrix: Annotated[
        Path | None, typer.Option(help="Importance matrix to quantize with.")
    ] = None,
    topology: Topology = None,
    num_device_layers: DeviceLayers = None,
    arch: Arch = None,
    max_seq_len: Annotated[int | None, typer.Option(help="Tokens of context.", min=1)] = None,
    cache_type: CacheType = None,
    chat_template: Annotated[
        str | None, typer.Option(help="Template file or literal in place of the model's.")
    ] = None,
    tok_model: TokModel = None,
) -> None:
    """Ask a model, or talk to it.

    Words given as PROMPT (or standard input, when it is no terminal) get one answer.
    """
    text = prompt_text(prompt)
    if text is None and (raw or as_json):
        raise typer.BadParameter("--raw and --json need a prompt")
    if raw and system is not None:
        raise typer.BadParameter("--raw applies no template, so --system has no place")
    if raw and (tool or mcp_config):
        raise typer.BadParameter("--raw applies no template, so the model cannot be told of tools")
    desk = None if raw else ToolDesk.from_options(tool, mcp_config, yes=yes)

    fields: dict[str, Any] = {
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "max_tokens": max_tokens,
        "stop_seqs": stop or None,
    }
    fields = {name: value for name, value in fields.items() if value is not None}
    if grammar is not None:
        fields |= grammar_fields(grammar)
    if desk is not None:
        fields |= desk.fields()

    from tramontane_cli.selection import default_model_id, select

    if model is None:
        from tramontane.hooks import plugin_manager

        model = default_model_id(plugin_manager())
    which = select(
        model, arch=arch, dtype=dtype, tok_model=tok_model, topology=topology, imatrix=imatrix
    )
    settings = {
        "seed": seed,
        "chat_template": chat_template,
        "pa_ctxt_len": max_seq_len,
        "pa_cache_type": cache_type,
        "in_situ_quant": isq,
        "num_device_layers": num_device_layers or None,
    }
    settings = {name: value for name, value in settings.items() if value is not None}
    runner = load(which, settings | ({} if desk is None else desk.settings()))
    try:
        if text is None:
            from tramontane_cli.chat import Chat

            Chat(runner, model, fields, system=system, stats=stats, desk=desk).talk()
        else:
            screen = Screen(silent=as_json)
            chunks = _chunks(runner, text, fields, system=system, raw=raw)
            _report(take(chunks, screen, desk), model, stats=stats, as_json=as_json)
    finally:
        runner.close()


def prompt_text(words: list[str] | None) -> str | None:
    """The prompt: words joined by spaces, with ``-`` replaced by standard input on lines of its
    own. None when there is no prompt and a person sits at the terminal."""
    if not words:
        return None if is_terminal(sys.stdin) else _standard_input()
    parts: list[str] = []
    for word in words:
        if word == "-":
            parts.append(f"\n\n{_standard_input()}\n\n")
        else:
            parts.append(word if not parts or parts[-1].endswith("\n") else f" {word}")
    return _non_empty("".join(parts))


def _standard_input() -> str:
    return _non_empty(sys.stdin.read())


def _non_empty(text: str) -> str:
    if not text.strip():
        raise typer.BadParameter("the prompt is empty")
    return text.strip("\n")


def load(which: Any, settings: dict[str, Any]) -> Any:
    """A `Runner` for ``which``, with progress for whoever is watching."""
    from tramontane import Runner

    with load_progress() as on_progress:
        return Runner(which=which, on_progress=on_progress, **settings)


def _chunks(
    runner: Any, prompt: str, fields: dict[str, Any], *, system: str | None, raw: bool
) -> Any:
    """The stream of the answer."""
    from tramontane import ChatCompletionRequest, CompletionRequest

    if raw:
        continuation = CompletionRequest(prompt=prompt, stream=True, **fields)
        return runner.send_completion_request(continuation)
    messages = [{"role": "system", "content": system}] if system is not None else []
    messages.append({"role": "user", "content": prompt})
    request = ChatCompletionRequest(messages=messages, stream=True, **fields)
    return runner.send_chat_completion_request(request)


def _report(answer: Answer, model: str, *, stats: bool, as_json: bool) -> None:
    """What is told of an answer that has been shown."""
    if as_json:
        typer.echo(json.dumps(answer.as_data(model), indent=2, ensure_ascii=False))
    if stats:
        typer.echo(stats_line(answer), err=True)
    if answer.interrupted:
        raise typer.Exit(EXIT_INTERRUPTED)
    if answer.finish_reason == "tool_calls":
        typer.secho(TOO_MANY_ROUNDS, err=True, dim=True)
        raise typer.Exit(1)
