"""Writes the figures of `run.py` into the README and docs/performance.md, and draws their picture.

Usage: publish.py [RESULTS], the file ``out/results.json`` unless told otherwise. Text between the
markers ``<!-- measured -->`` and ``<!-- /measured -->`` of both files is replaced.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import frozen
from chart import draw

ROOT = Path(__file__).parent.parent
OPEN, CLOSE = "<!-- measured -->", "<!-- /measured -->"
OURS, LLAMA_CPP = "tramontane", "llama.cpp"
TITLES = {"q4_k_m": "Q4_K_M", "q8_0": "Q8_0", "bf16": "BF16"}
SHORT = {
    "decode at 512": "decode, tok/s",
    "decode at 4096": "decode at depth 4096, tok/s",
    "prefill 512": "prefill, tok/s",
    "prefill 2048": "prefill of 2048, tok/s",
    "decode of 8": "decode of 8 sequences, tok/s in all",
}
DEPTHS, PROMPTS, SEQUENCES = (128, 512, 4096), (128, 512, 2048, 4096), (1, 4, 8, 16)
EVERY = {
    **{f"decode at {n}": f"decode at depth {n:,}, tok/s" for n in DEPTHS},
    **{f"share of bandwidth at {n}": f"share of read bandwidth at depth {n:,}" for n in DEPTHS},
    **{f"prefill {n}": f"prefill of {n:,}, tok/s" for n in PROMPTS},
    **{f"decode of {n}": f"decode of {n} at once, tok/s in all" for n in SEQUENCES},
    **{f"total of {n}": f"{n} at once, prompts' time counted, tok/s" for n in SEQUENCES},
    "first_token_secs": "first token of 1,016, s",
    "cached_first_token_secs": "the same, 1,000 of them cached, s",
    "load_secs": "load, s",
    "peak_mb": "peak memory after a prompt, MB",
    "peak_without_torch_mb": "the same without torch's import, MB",
    "last_peak_mb": "peak memory after the whole run, MB",
}
MEMORY_ALLOWANCE_MB = 250
CACHED_SHARE = 1 / 20

Figures = Mapping[str, Mapping[str, float]]


@frozen
class Bar:
    """What a speed must reach.

    Attributes:
        figure: its title.
        weights: key of ``formats`` in the results.
        key: of the figure there.
        best: times that of the best peer, or None.
        llama_cpp: times that of llama.cpp, or None.
        share: of the memory's read bandwidth, or None.
    """

    figure: str
    weights: str
    key: str
    best: float | None = None
    llama_cpp: float | None = None
    share: float | None = None

    def row(self, formats: Mapping[str, Figures]) -> list[str] | None:
        """Cells: figure, bar, what was reached, whether that is enough. None: not measured."""
        engines = formats.get(self.weights, {})
        if self.key not in engines.get(OURS, {}):
            return None
        own = engines[OURS][self.key]
        asked, reached, enough = [], [], True
        peers = {n: f[self.key] for n, f in engines.items() if n != OURS and self.key in f}
        for least, name in ((self.best, max(peers, key=lambda n: peers[n], default=None)),
                            (self.llama_cpp, LLAMA_CPP)):  # fmt: skip
            if least is None:
                continue
            asked.append(f"{least:g}x {'the best peer' if least is self.best else name}")
            if name not in peers:
                reached.append("no peer measured")
                enough = False
                continue
            reached.append(f"{own / peers[name]:.2f}x {name}")
            enough &= own >= least * peers[name]
        if self.share is not None:
            share = engines[OURS][f"share of bandwidth at {self.key.split()[-1]}"]
            asked.append(f"{self.share:.0%} of bandwidth")
            reached.append(f"{share:.0%} of bandwidth")
            enough &= share >= self.share
        return [self.figure, ", ".join(asked), f"{own:.3g} tok/s: {', '.join(reached)}",
                "yes" if enough else "no"]  # fmt: skip


BARS = (
    Bar("decode Q4_K, depth 512", "q4_k_m", "decode at 512", best=1.7, share=0.75),
    Bar("decode Q8_0, depth 512", "q8_0", "decode at 512", best=1.5, share=0.8),
    Bar("decode BF16, depth 512", "bf16", "decode at 512", best=1.2, share=0.8),
    Bar("decode Q4_K, depth 4096", "q4_k_m", "decode at 4096", llama_cpp=2.0),
    Bar("prefill 512, Q4_K", "q4_k_m", "prefill 512", best=1.2, llama_cpp=1.8),
    Bar("prefill 512, Q8_0", "q8_0", "prefill 512", best=1.2, llama_cpp=1.8),
    Bar("prefill 2048, Q4_K", "q4_k_m", "prefill 2048", best=1.2),
    Bar("8 sequences, Q4_K", "q4_k_m", "decode of 8", best=2.0),
)


def bars(formats: Mapping[str, Figures]) -> list[str]:
    """A table of what was asked for and what was reached."""
    rows = [row for bar in BARS if (row := bar.row(formats)) is not None]
    engines = formats.get("q4_k_m", {})
    own, theirs = engines.get(OURS, {}), engines.get(LLAMA_CPP, {})
    if own and theirs:
        least, most = own["peak_without_torch_mb"], theirs["peak_mb"] + MEMORY_ALLOWANCE_MB
        rows.append([
            "peak memory, Q4_K, without torch",
            f"llama.cpp's + {MEMORY_ALLOWANCE_MB} MB",
            f"{least:.0f} MB ({own['peak_mb']:.0f} with torch): {theirs['peak_mb']:.0f} llama.cpp",
            "yes" if least <= most else "no",
        ])  # fmt: skip
    if "cached_first_token_secs" in own:
        cached, whole = own["cached_first_token_secs"], own["first_token_secs"]
        rows.append([
            "first token, 1,000 tokens of prefix cached",
            "under 1/20 of the uncached time",
            f"{cached:.2f} s of {whole:.2f} s: 1/{whole / cached:.0f}",
            "yes" if cached < CACHED_SHARE * whole else "no",
        ])  # fmt: skip
    return table(["figure", "at least", "measured", "met"], rows, "lllc")


def speeds(formats: Mapping[str, Figures], rows: Mapping[str, str]) -> list[str]:
    """A table of every engine's figures."""
    names = list(dict.fromkeys(name for engines in formats.values() for name in engines))
    cells = []
    for weights, engines in formats.items():
        title = TITLES.get(weights, weights)
        for key, heading in rows.items():
            values = [engines.get(name, {}).get(key) for name in names]
            if any(value is not None for value in values):
                cells.append([title, heading, *(written(key, value) for value in values)])
                title = ""
    return table(["weights", "", *names], cells, "ll" + "r" * len(names))


def written(key: str, value: float | None) -> str:
    if value is None:
        return ""
    if key.startswith("share"):
        return f"{value:.0%}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(heads: list[str], rows: list[list[str]], columns: str) -> list[str]:
    rules = {"l": "---", "c": ":---:", "r": "---:"}
    every = [heads, [rules[column] for column in columns], *rows]
    return [f"| {' | '.join(row)} |" for row in every]


def circumstances(results: Mapping[str, Any]) -> str:
    """On what, and how, the figures were taken."""
    reads = sorted(results["read_gb_per_sec"].values())
    span = f"{reads[0]:.0f}" if f"{reads[0]:.0f}" == f"{reads[-1]:.0f}" else (
        f"{reads[0]:.0f} to {reads[-1]:.0f}"
    )  # fmt: skip
    versions = ", ".join(f"{n} {v}" for n, v in results["versions"].items() if n != OURS)
    once = (
        f"; prompts above 1,000 tokens: {results['long_rounds']}"
        if results["long_rounds"] != results["rounds"]
        else ""
    )
    return (
        f"{results['processor']} ({results['torch_instructions']}), {results['threads']} threads, "
        f"memory reads of {span} GB/s; a Llama of 1.1 B parameters, prompts of 512 tokens unless "
        f"said, of 128 for several at once, {results['decode']} tokens decoded; medians of "
        f"{results['rounds']} rounds in turn{once}. Beside {OURS}: {versions}."
    )


def replace(file: Path, lines: list[str]) -> None:
    text = file.read_text("utf-8")
    if text.count(OPEN) != 1 or text.count(CLOSE) != 1:
        raise SystemExit(f"{file} must have {OPEN} and {CLOSE} once each")
    before, rest = text.split(OPEN)
    after = rest.split(CLOSE)[1]
    file.write_text("\n".join([before + OPEN, *lines, CLOSE]) + after, "utf-8")


def main() -> None:
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "out/results.json"
    results = json.loads(source.read_text("utf-8"))
    formats, told = results["formats"], circumstances(results)
    replace(ROOT / "README.md", [told, "", *speeds(formats, SHORT)])
    replace(
        ROOT / "docs/performance.md",
        [told, "", *bars(formats), "", "Every figure:", "", *speeds(formats, EVERY)],
    )
    draw(results, ROOT / "docs/speed.png")


if __name__ == "__main__":
    main()
