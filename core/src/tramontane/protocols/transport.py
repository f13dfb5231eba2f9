"""What an MCP transport plug-in implements."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol


class Transport(Protocol):
    """Built from its source configuration; connecting yields the two message streams that the
    ``mcp`` SDK's ``ClientSession`` takes."""

    def __init__(self, source: Any, *, bearer_token: str | None = None) -> None: ...

    def connect(self) -> AbstractAsyncContextManager[tuple[Any, Any]]:
        """``async with transport.connect() as (read, write)``. Leaving the block ends the
        connection and whatever process served it."""
        ...
