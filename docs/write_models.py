"""Writes ``models.md`` from what the installed plug-ins declare, and the line counts of
``add_architecture.md``; ``make docs`` runs it, and a test compares."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from tramontane.hooks import ArchitectureSpec, PluginManager, plugin_manager
from tramontane.hooks.known import known_extras
from tramontane_gguf.export_names import WRITTEN

PAGE = Path(__file__).with_name("models.md")
GUIDE = PAGE.with_name("add_architecture.md")

_COUNTED = re.compile(r"^(\| \[[^]]+\]\((?P<file>[^)]+\.py)\) \| )\d+(?= \|)", re.MULTILINE)
"""A row of the guide: a model's name, with a link to its file, and the lines of that."""

KINDS = {
    "text": ("Text models", "`Which.Plain`, and from GGUF files `Which.GGUF`"),
    "vision": ("Vision models", "`Which.VisionPlain`"),
    "embedding": ("Embedding models", "`Which.Embedding`, whose `model_id` may be a GGUF file"),
    "diffusion": ("Image models", "`Which.DiffusionPlain`"),
    "speech": ("Speech models", "`Which.Speech`"),
}
"""Kind of model → heading, and how it is selected."""

INTRODUCTION = """\
# Models

<!-- Written by docs/write_models.py from what the plug-ins declare: run `make docs`. -->

A checkpoint is recognized by `architectures` in its `config.json`, or by `general.architecture` in
its GGUF file; nothing has to be named. `arch=` takes the name in the first column where a
checkpoint says otherwise. GGUF files of Mistral and Mixtral call themselves `llama`, those of
DeepSeek V3 `deepseek2`. `tramontane quantize` [writes](quantization.md#files) GGUF files of all
that have a name under *Written as*. What is not here yet can be [added](add_architecture.md)."""


def page(plugins: PluginManager | None = None) -> str:
    """The text of the page, for this project's own distributions."""
    plugins = plugins or plugin_manager()
    specs = [
        (extra, spec)
        for extra, row in known_extras().items()
        for spec in plugins.specs("architectures")
        if plugins.owner(spec).distribution == row["distribution"]
    ]
    parts = [INTRODUCTION]
    for kind, (heading, selected) in KINDS.items():
        rows = [(extra, spec) for extra, spec in specs if spec.kind == kind]
        if rows:
            parts.append(f"## {heading}\n\nSelected by {selected}.\n\n{_table(rows)}")
    return "\n\n".join(parts) + "\n"


def _table(rows: Iterable[tuple[str, ArchitectureSpec]]) -> str:
    lines = ["| Architecture | What it is | `config.json` | GGUF | Written as | Install |"]
    lines.append("|---|---|---|---|---|---|")
    lines += (f"| {' | '.join(_cells(extra, spec))} |" for extra, spec in rows)
    return "\n".join(lines)


def _cells(extra: str, spec: ArchitectureSpec) -> Iterator[str]:
    yield f"`{spec.name}`"
    yield spec.summary
    yield _names(spec.hf_names)
    yield _names(spec.gguf_names)
    yield _names(dict.fromkeys(n for hf_name in spec.hf_names for n in WRITTEN.get(hf_name, ())))
    yield f"`tramontane[{extra}]`"


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "—"


def counted(guide: str) -> str:
    """The guide with the lines of each file it lists."""

    def count(row: re.Match[str]) -> str:
        lines = (GUIDE.parent / row["file"]).read_text(encoding="utf-8").count("\n")
        return f"{row[1]}{lines}"

    return _COUNTED.sub(count, guide)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    GUIDE.write_text(counted(GUIDE.read_text(encoding="utf-8")), encoding="utf-8")
