"""The small JSON files that travel beside a tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tramontane.errors import SourceError


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object from a file, or None if there is no such file.

    Raises:
        SourceError: unreadable, not JSON in UTF-8, or JSON of another kind.
    """
    data = _load(path)
    if data is not None and not isinstance(data, dict):
        raise SourceError(f"{path} holds a JSON {type(data).__name__} where an object belongs")
    return data


def read_json_list(path: Path) -> list[Any] | None:
    """As `read_json`, for a file that holds a list."""
    data = _load(path)
    if data is not None and not isinstance(data, list):
        raise SourceError(f"{path} holds a JSON {type(data).__name__} where a list belongs")
    return data


def _load(path: Path) -> Any:
    try:
        content = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as cause:
        raise SourceError(f"{path} cannot be read: {cause}. Fetch the file again.") from cause
    try:
        data = json.loads(content)
    except (json.JSONDecodeError, RecursionError) as cause:
        raise SourceError(f"{path} is not valid JSON: {cause}. Fetch the file again.") from cause
    if data is None:
        raise SourceError(f"{path} holds nothing but null. Fetch the file again.")
    return data


def token_text(value: object) -> str | None:
    """Text of a special token, which configurations write as a string or as ``{"content": …}``."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) and value else None
