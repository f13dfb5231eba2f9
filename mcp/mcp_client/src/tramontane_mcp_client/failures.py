"""Errors of MCP servers and of the way to them, told in one sentence."""

from __future__ import annotations

from collections.abc import Iterator

from tramontane.errors import TramontaneError


class McpError(TramontaneError):
    """A server, or the way to it, failed; the message names the server."""


class McpToolError(McpError):
    """The server ran the tool and says that it failed; the message is the tool's own."""


def describe(error: BaseException) -> str:
    """What went wrong, without the groups that concurrent tasks wrap it in."""
    return "; ".join(dict.fromkeys(_parts(error)))


def _parts(error: BaseException) -> Iterator[str]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _parts(inner)
    else:
        # Without its type, an empty or bare message such as KeyError's says nothing.
        text = str(error).strip()
        plain = isinstance(error, (OSError, TramontaneError)) or type(error).__name__ == "MCPError"
        yield text if text and plain else f"{type(error).__name__}: {text}".removesuffix(": ")
    yield from getattr(error, "__notes__", ())
