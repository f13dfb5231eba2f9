"""URI patterns: what they let through, and what not."""

from __future__ import annotations

import pytest
from mcp import types

from tramontane_mcp_client.resources import LISTED, Patterns


@pytest.mark.parametrize(
    ("pattern", "uri", "permitted"),
    [
        ("file://**", "file:///a/b.txt", True),
        ("file:///docs/*", "file:///docs/a.txt", True),
        ("file:///docs/*", "file:///docs/sub/a.txt", False),
        ("file:///docs/?.txt", "file:///docs/a.txt", True),
        ("file:///docs/?.txt", "file:///docs//.txt", False),
        ("file:///docs/**", "file:///docs/../secret.txt", False),
        ("file:///docs/**", "file:///docs/%2e%2e/secret.txt", False),
        ("file:///docs/**", "file:///docs/%252e%252e%252fsecret.txt", False),
        ("file:///docs/**", "file:///docs/..\\secret.txt", False),
        ("file:///docs/a+(b).txt", "file:///docs/a+(b).txt", True),
        ("file:///docs/a", "file:///docs/a\n", False),
        ("http://x/", "https://x/", False),
    ],
)
def test_patterns(pattern: str, uri: str, permitted: bool) -> None:
    assert Patterns([pattern]).permit(uri) is permitted


def test_no_pattern_permits_nothing() -> None:
    assert not Patterns([]).permit("file:///a")


def test_the_description_lists_what_may_be_read_up_to_a_number() -> None:
    resources = [types.Resource(uri=f"file:///{i}", name=f"n{i}") for i in range(LISTED + 5)]
    resources.append(types.Resource(uri="other://1", name="hidden"))
    told = Patterns(["file://**"]).reader_description("Files", resources)
    assert "file:///0: n0" in told
    assert "and 5 more" in told
    assert "hidden" not in told
