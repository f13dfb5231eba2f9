"""Listings that servers give page by page."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol, TypeVar

from tramontane_mcp_client.failures import McpError

MOST_PAGES = 1000
"""Of a listing, against servers whose cursors lead round in circles."""


class _Page(Protocol):
    next_cursor: str | None


P = TypeVar("P", bound=_Page)


async def pages(listing: Callable[..., Awaitable[P]]) -> AsyncIterator[P]:
    """Every page of a listing.

    Raises:
        McpError: there are more than `MOST_PAGES`.
    """
    cursor = None
    for _ in range(MOST_PAGES):
        page = await listing(cursor=cursor)
        yield page
        cursor = page.next_cursor
        if cursor is None:
            return
    raise McpError(f"its listing has no end after {MOST_PAGES} pages")
