"""The tools of ``tramontane run``: gathered from options, asked about, shown as they run."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from tramontane.errors import ValidationError
from tramontane_cli.answer import Screen
from tramontane_cli.function_tools import FunctionTool
from tramontane_cli.terminal import is_terminal, printable

MCP_CONFIG_PATH = "MCP_CONFIG_PATH"

SHOWN_CHARS = 600
"""Of a result; the model gets all of it."""

QUESTION = "  run it? [y]es, [n]o, [a]lways this tool: "


class ToolDesk:
    """Where calls pass by: each is shown, and run when the person allows it.

    Args:
        functions: of ``--tool``.
        mcp_config: of ``--mcp-config``, read already; None for none.
        ask: whether a call waits for a yes.

    Attributes:
        screen: what is being written to, so that calls begin on a line of their own.
    """

    def __init__(
        self, functions: Sequence[FunctionTool] = (), mcp_config: Any = None, *, ask: bool = True
    ) -> None:
        self.screen: Screen | None = None
        self._functions = {tool.name: tool for tool in functions}
        if len(self._functions) < len(functions):
            raise ValidationError("--tool: two functions have one name; rename one")
        self._mcp_config = mcp_config
        self._ask = ask
        self._always: set[str] = set()

    @classmethod
    def from_options(
        cls, tools: Sequence[str] | None, mcp_config: Path | None, *, yes: bool
    ) -> ToolDesk | None:
        """The desk that options and environment ask for; None without any tools.

        Raises:
            typer.BadParameter: calls are to be asked about, and nobody is there to answer.
        """
        if not (tools or mcp_config or os.environ.get(MCP_CONFIG_PATH)):
            return None
        if not yes and not is_terminal(sys.stdin):
            raise typer.BadParameter(
                "each call of a tool is asked about first, and standard input is no terminal to "
                "answer from: add --yes to let the model run these tools without asking"
            )
        from tramontane.api import McpClientConfigPy

        config = None if mcp_config is None else McpClientConfigPy.from_file(mcp_config)
        return cls([FunctionTool.named(tool) for tool in tools or ()], config, ask=not yes)

    def settings(self) -> dict[str, Any]:
        """For `Runner`."""
        given = {"tool_callbacks": self._functions, "mcp_client_config": self._mcp_config}
        settings = {name: value for name, value in given.items() if value}
        return settings | {"tool_approval": self.approve}

    def fields(self) -> dict[str, Any]:
        """For every request."""
        schemas = [tool.schema for tool in self._functions.values()]
        return {"tool_schemas": schemas} if schemas else {}

    def approve(self, name: str, arguments: Mapping[str, Any]) -> bool:
        """Show a call that is about to run, and ask whether it may."""
        said = ", ".join(f"{key}={_json(value)}" for key, value in arguments.items())
        self._say(f"→ {name}({said})")
        if not self._ask or name in self._always:
            return True
        typer.echo(QUESTION, err=True, nl=False)
        answer = sys.stdin.readline().strip().lower()
        if answer in ("a", "always"):
            self._always.add(name)
        return answer in ("y", "yes", "a", "always")

    def show(self, executed: Sequence[Any]) -> None:
        """Show what came of a round's calls."""
        for run in executed:
            text = run.result
            if len(text) > SHOWN_CHARS:
                text = f"{text[:SHOWN_CHARS]} … ({len(run.result):,} characters)"
            self._say(f"← {text}", style="red" if run.is_error else None)

    def _say(self, text: str, style: str | None = None) -> None:
        from rich.console import Console
        from rich.text import Text

        if self.screen is not None:
            self.screen.end_line()
        console = Console(stderr=True, soft_wrap=True)
        console.print(Text(printable(text), style=style or "cyan"))


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
