"""The figures of `run.py` as bars."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

COLORS = {
    "tramontane": "#1f6f8b",
    "llama.cpp": "#e0a458",
    "mistral.rs": "#8d99ae",
    "OpenVINO GenAI": "#9c6b98",
}


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Write a PNG: a row of panels a format, tokens a second by figure and engine."""
    formats = results["formats"]
    figure, rows = pyplot.subplots(
        len(formats), 3, figsize=(11, 3 * len(formats)), squeeze=False, layout="constrained"
    )
    for axes, (name, engines) in zip(rows, formats.items(), strict=True):
        keys = list(next(iter(engines.values())))
        _panel(axes[0], f"{name.upper()}: decode at depth", "decode at ", keys, engines)
        _panel(axes[1], f"{name.upper()}: prefill of tokens", "prefill ", keys, engines)
        _panel(axes[2], f"{name.upper()}: decode of sequences", "decode of ", keys, engines)
    handles, labels = rows[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.suptitle(f"tokens a second, Llama {results['size']}, {results['threads']} threads")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _panel(
    axis: Any, title: str, prefix: str, keys: list[str], engines: Mapping[str, Mapping[str, float]]
) -> None:
    shown = [key for key in keys if key.startswith(prefix)]
    shown.sort(key=lambda key: int(key.removeprefix(prefix)))
    if not shown:
        axis.set_axis_off()
        return
    width = 0.8 / len(engines)
    for nth, (engine, figures) in enumerate(engines.items()):
        measured = [i for i, key in enumerate(shown) if key in figures]
        places = [i + (nth - (len(engines) - 1) / 2) * width for i in measured]
        heights = [figures[shown[i]] for i in measured]
        bars = axis.bar(places, heights, width, label=engine, color=COLORS.get(engine))
        axis.bar_label(bars, fmt="%.3g", fontsize=8)
    axis.set_xticks(range(len(shown)), [key.removeprefix(prefix) for key in shown])
    axis.set_title(title, fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
