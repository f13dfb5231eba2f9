"""Measure loading, prefill, decoding and throughput, beside other engines; see README.md."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import torch
from rich.console import Console
from rich.table import Table
from synthetic import SHAPES, gguf_model

HERE = Path(__file__).parent
HEADINGS = {
    "load_secs": "load s",
    "peak_mb": "peak MB",
    "cached_first_token_secs": "cached first token s",
}


class Worker:
    """An engine with one model loaded, in a process of its own; idle until it is told to run.

    Attributes:
        ready: what it said when it had loaded.
        peak_mb: of the process, so far.
    """

    def __init__(self, python: str, script: str, model: Path, threads: int) -> None:
        command = [python, str(HERE / "engines" / script), str(model), str(threads)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        self.ready = self._answer()
        self.peak_mb = 0.0

    def run(self, **command: Any) -> dict[str, float]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        self.peak_mb = answer["peak_mb"]
        return answer

    def close(self) -> None:
        self._process.communicate()

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._process.args} ended; see its message above")
        answer: dict[str, float] = json.loads(line)
        return answer


def bandwidth() -> float:
    """Bytes a second that all threads together read from memory."""
    data = torch.ones(1 << 26)  # 256 MiB, beyond every cache

    def timed(work: Callable[[], Any]) -> float:
        begin = time.perf_counter()
        work()
        return time.perf_counter() - begin

    return data.nbytes / min(timed(lambda: data.sum()) for _ in range(5))


def token_bytes(file: Path) -> int:
    """Bytes of weights that a decoded token reads: all but the embedding, of which it is a row."""
    tensors = gguf.GGUFReader(file).tensors
    return sum(int(t.n_bytes) for t in tensors if t.name != "token_embd.weight")


def measure(worker: Worker, args: argparse.Namespace, ours: bool) -> dict[str, float]:
    """One round."""
    figures = {}
    for tokens in args.prefill:
        figures[f"prefill {tokens}"] = worker.run(prompt=tokens, decode=2, sequences=1)["prefill"]
    for depth in args.depth:
        got = worker.run(prompt=depth, decode=args.decode, sequences=1)
        figures[f"decode at {depth}"] = got["decode"]
        figures.setdefault(f"prefill {depth}", got["prefill"])
    for count in args.sequences:
        got = worker.run(prompt=128, decode=args.decode, sequences=count)
        figures[f"decode {count} seq."] = got["decode"]
        figures[f"total {count} seq."] = got["total"]
    if ours:
        worker.run(prompt=1000, decode=1, sequences=1)
        again = worker.run(prompt=1000, decode=1, sequences=1, cached=True)
        figures["cached_first_token_secs"] = again["seconds"]
    return figures


def bench_format(
    name: str, args: argparse.Namespace, bytes_per_sec: float
) -> dict[str, dict[str, float]]:
    """Medians of one weight format, by engine."""
    file = gguf_model(args.out / f"{args.size}-{name}.gguf", SHAPES[args.size], name)
    started = {"tramontane": Worker(sys.executable, "ours.py", file, args.threads)}
    if args.llama_cpp:
        started["llama.cpp"] = Worker(args.llama_cpp, "llamacpp.py", file, args.threads)
    rounds: dict[str, list[dict[str, float]]] = {engine: [] for engine in started}
    for _ in range(args.rounds):  # engines take turns: the machine's mood hits them alike
        for engine, worker in started.items():
            rounds[engine].append(measure(worker, args, ours=engine == "tramontane"))
    figures = {}
    for engine, worker in started.items():
        got = {key: statistics.median(r[key] for r in rounds[engine]) for key in rounds[engine][0]}
        for depth in args.depth:
            share = got[f"decode at {depth}"] * token_bytes(file) / bytes_per_sec
            got[f"share of bandwidth at {depth}"] = share
        figures[engine] = {**got, **worker.ready, "peak_mb": worker.peak_mb}
        worker.close()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SHAPES, default="small")
    parser.add_argument("--formats", nargs="+", default=["q4_k_m", "q8_0", "bf16"])
    parser.add_argument("--prefill", nargs="*", type=int, default=[128])
    parser.add_argument("--depth", nargs="*", type=int, default=[512])
    parser.add_argument("--sequences", nargs="*", type=int, default=[8])
    parser.add_argument("--decode", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--llama-cpp", metavar="PYTHON")
    parser.add_argument("--out", type=Path, default=HERE / "out")
    args = parser.parse_args()
    args.out.mkdir(exist_ok=True)
    read = bandwidth()
    results: dict[str, Any] = {
        "machine": platform.processor() or platform.machine(),
        "threads": args.threads,
        "read_gb_per_sec": read / 1e9,
        "size": args.size,
        "formats": {},
    }
    console = Console(width=None if sys.stdout.isatty() else 120)
    for name in args.formats:
        figures = results["formats"][name] = bench_format(name, args, read)
        title = f"Llama {args.size}, {name}, {args.threads} threads, reads {read / 1e9:.0f} GB/s"
        table = Table("", *figures, title=title)
        for key in next(iter(figures.values())):
            cells = (row.get(key) for row in figures.values())
            table.add_row(HEADINGS.get(key, key), *("" if c is None else f"{c:.3g}" for c in cells))
        console.print(table)
        (args.out / "results.json").write_text(json.dumps(results, indent=1), "utf-8")


if __name__ == "__main__":
    main()
