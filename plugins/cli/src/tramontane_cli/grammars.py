"""``--grammar``: what an answer must be, from the command line or a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tramontane.errors import SourceError

SUFFIXES = {
    ".json": "json_schema",
    ".lark": "lark",
    ".regex": "regex",
    ".llg": "llguidance",
}
"""What a file holds, by its name."""

KINDS = tuple(SUFFIXES.values())

HELP = "What the answer must be: regex:…, json_schema:…, lark:…, llguidance:…, or a file (" + (
    ", ".join(SUFFIXES) + ")."
)


def grammar_fields(given: str) -> dict[str, Any]:
    """The fields of a request for ``KIND:GRAMMAR`` or a file.

    Raises:
        SourceError: it is neither, or the file cannot be read.
    """
    kind, colon, text = given.partition(":")
    if colon and kind in KINDS:
        return {"grammar": text, "grammar_type": kind}
    path = Path(given).expanduser()
    if not path.is_file():
        raise SourceError(
            f"--grammar {given}: no such file; a grammar itself is written "
            f"{', '.join(f'{name}:…' for name in KINDS)}"
        )
    found = SUFFIXES.get(path.suffix.lower())
    if found is None:
        raise SourceError(
            f"--grammar {given}: the name does not tell what the file holds; it ends in "
            f"{', '.join(f'{suffix} ({name})' for suffix, name in SUFFIXES.items())}"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"--grammar {given}: {error}") from error
    # A line break at the end of a file is the editor's, not the pattern's.
    return {"grammar": text.rstrip("\n") if found == "regex" else text, "grammar_type": found}
