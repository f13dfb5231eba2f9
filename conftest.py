"""Executes the documentation: each page's ``python`` blocks, in order, in one namespace.

A comment on the line before a block changes that:

* ``<!-- not run: REASON -->``: compiled only;
* ``<!-- excerpt of FILE -->``: must stand in FILE, relative to the page, word for word;
* ``<!-- prints: TEXT -->``: the block must print TEXT.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BLOCK = re.compile(
    r"(?:^<!-- (?P<rule>not run|excerpt of|prints)(?:: | )(?P<detail>[^\n]*?) -->\n)?"
    r"^```(?P<language>\w+)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)\)")


def pytest_collect_directory(path: Path, parent: pytest.Collector) -> None:
    """pytest names test modules after their folders and would make a package of ``mcp/``; the one
    of that name, the SDK, must be there first."""
    if path.name == "mcp":
        importlib.import_module("mcp")


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    return Page.from_parent(parent, path=file_path) if file_path.suffix == ".md" else None


class Page(pytest.File):
    """One Markdown file."""

    def collect(self) -> Iterator[pytest.Item]:
        text = self.path.read_text(encoding="utf-8")
        yield Links.from_parent(self, name="links", text=text)
        namespace: dict[str, Any] = {"__name__": "__page__"}
        for block in BLOCK.finditer(text):
            if block["language"] != "python" and block["rule"] != "excerpt of":
                continue
            line = text.count("\n", 0, block.start("code"))
            name = f"line {line + 1}"
            yield Sample.from_parent(
                self, name=name, block=block.groupdict(), line=line, namespace=namespace
            )


class Sample(pytest.Item):
    """One block."""

    def __init__(
        self, *, block: dict[str, str], line: int, namespace: dict[str, Any], **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.block, self.line, self.namespace = block, line, namespace

    def runtest(self) -> None:
        rule, detail, code = self.block["rule"], self.block["detail"], self.block["code"]
        if rule == "excerpt of":
            source = (self.path.parent / detail).read_text(encoding="utf-8")
            assert code in source, f"{detail} reads otherwise"
            return
        # Blank lines in front give tracebacks the page's line numbers.
        compiled = compile(ast.parse("\n" * self.line + code), str(self.path), "exec")
        if rule == "not run":
            return
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compiled, self.namespace)
        if rule == "prints":
            assert printed.getvalue().strip() == detail

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, self.line, f"{self.path.name}, {self.name}"


class Links(pytest.Item):
    """Relative links of a page lead somewhere."""

    def __init__(self, *, text: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.text = text

    def runtest(self) -> None:
        for found in LINK.finditer(self.text):
            target = found["target"].split("#")[0]
            if target and "://" not in target:
                assert (self.path.parent / target).exists(), f"{found['target']} leads nowhere"
