"""Which resources of a server may be read: its URI patterns, enforced."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from urllib.parse import unquote

from mcp import types

LISTED = 30
"""Resources named in the description of the tool that reads them."""

PIECE = re.compile(r"\*\*|\*|\?|[^*?]+")
MEANING = {"**": ".*", "*": "[^/]*", "?": "[^/]"}


class Patterns:
    """URI patterns: ``*`` and ``?`` stand for any characters but ``/``, ``**`` for any at all.

    A URI with a ``..`` step, written out or percent-encoded, fits none: what it names lies
    elsewhere than it seems.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        self._patterns = tuple(patterns)
        self._expressions = [
            re.compile(
                "".join(MEANING.get(piece) or re.escape(piece) for piece in PIECE.findall(pattern)),
                re.DOTALL,
            )
            for pattern in patterns
        ]

    def __str__(self) -> str:
        return ", ".join(self._patterns) or "none"

    def permit(self, uri: str) -> bool:
        """Whether ``uri`` may be read."""
        steps = re.split(r"[/\\]", unquote(unquote(uri)))
        return ".." not in steps and any(e.fullmatch(uri) for e in self._expressions)

    def reader_description(self, server: str, resources: Iterable[types.Resource]) -> str:
        """What the tool that reads a server's resources says of itself."""
        permitted = [r for r in resources if self.permit(str(r.uri))]
        lines = [
            f"{r.uri}: {r.description or r.title or r.name}".removesuffix(": ")
            for r in permitted[:LISTED]
        ]
        if len(permitted) > LISTED:
            lines.append(f"and {len(permitted) - LISTED} more")
        known = "".join(f"\n- {line}" for line in lines)
        return f"Read a resource of {server}. URIs that may be read: {self}.{known}"


READER_NAME = "read_resource"

READER_PARAMETERS = {
    "type": "object",
    "properties": {"uri": {"type": "string", "description": "URI of the resource"}},
    "required": ["uri"],
}
