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
from chart import draw
from peers import PEERS
from rich.console import Console
from rich.table import Table
from synthetic import SHAPES, gguf_model

HERE = Path(__file__).parent
HEADINGS = {
    "load_secs": "load, s",
    "peak_mb": "peak, MB",
    "peak_without_torch_mb": "peak without torch's import, MB",
    "first_token_secs": "first token, prompt unknown, s",
    "cached_first_token_secs": "first token, prefix cached, s",
}
QUESTION_TOKENS = 16
"""What a prompt with a cached prefix goes on with."""
QUICK = {"formats": ["q4_k_m"], "prefill": [], "depth": [512], "sequences": [8], "decode": 32}


class EngineEndedError(RuntimeError):
    """An engine's process is gone: it cannot load the model, or it failed on a command."""


class Worker:
    """An engine with one model loaded, in a process of its own; idle until it is told to run.

    Attributes:
        ready: what it said when it had loaded: ``load_secs``, and where they apply ``torch_mb``,
            ``finds_prefixes`` (by itself, in prompts it has seen) and ``most_sequences``.
        peak_mb: of the process, so far.
    """

    def __init__(self, python: str, script: str, model: Path, threads: int, log: Path) -> None:
        command = [python, str(HERE / "engines" / script), str(model), str(threads)]
        pipe = subprocess.PIPE
        self._log = log
        with log.open("w") as said:
            self._process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=said, text=True
            )
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
            raise EngineEndedError(f"{self._process.args} ended; see {self._log}")
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


def measure(worker: Worker, args: argparse.Namespace) -> dict[str, float]:
    """One round of what the engine can do."""
    figures = {}
    for tokens in args.prefill:
        if tokens not in args.depth:
            got = worker.run(prompt=tokens, decode=2, sequences=1)
            figures[f"prefill {tokens}"] = got["prefill"]
    for depth in args.depth:
        got = worker.run(prompt=depth, decode=args.decode, sequences=1)
        figures[f"prefill {depth}"] = got["prefill"]
        figures[f"decode at {depth}"] = got["decode"]
    for count in args.sequences:
        if count > worker.ready.get("most_sequences", count):
            continue
        got = worker.run(prompt=128, decode=args.decode, sequences=count)
        figures[f"decode of {count}"] = got["decode"]
        figures[f"total of {count}"] = got["total"]
    if args.cached:
        prompt = args.cached + QUESTION_TOKENS
        got = worker.run(prompt=prompt, decode=1, sequences=1)
        figures["first_token_secs"] = got["seconds"]
        if worker.ready.get("finds_prefixes"):
            again = worker.run(prompt=prompt, decode=1, sequences=1, cached=args.cached)
            figures["cached_first_token_secs"] = again["seconds"]
    return figures


def bench_format(
    name: str, args: argparse.Namespace, bytes_per_sec: float
) -> dict[str, dict[str, float]]:
    """Medians of one weight format, by engine. An engine that ends is left out, and said to be."""
    file = gguf_model(args.out / f"{args.size}-{name}.gguf", SHAPES[args.size], name)
    engines = {"tramontane": (sys.executable, "ours.py")}
    for peer in PEERS:
        if peer.option in args.peers:
            engines[peer.name] = (args.interpreters[peer.option], peer.script)
    started: dict[str, Worker] = {}
    for engine, (python, script) in engines.items():
        try:
            log = args.out / f"{Path(script).stem}.log"
            started[engine] = Worker(python, script, file, args.threads, log)
        except EngineEndedError as error:
            print(f"{name}: {engine} is left out: {error}", file=sys.stderr)
    rounds: dict[str, list[dict[str, float]]] = {engine: [] for engine in started}
    for _ in range(args.rounds):  # engines take turns: the machine's mood hits them alike
        for engine, worker in started.items():
            rounds[engine].append(measure(worker, args))
    figures = {}
    for engine, worker in started.items():
        got = {key: statistics.median(r[key] for r in rounds[engine]) for key in rounds[engine][0]}
        for depth in args.depth:
            share = got[f"decode at {depth}"] * token_bytes(file) / bytes_per_sec
            got[f"share of bandwidth at {depth}"] = share
        got |= {"load_secs": worker.ready["load_secs"], "peak_mb": worker.peak_mb}
        got["peak_without_torch_mb"] = worker.peak_mb - worker.ready.get("torch_mb", 0.0)
        figures[engine] = got
        worker.close()
    return figures


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SHAPES, default="1b")
    parser.add_argument("--formats", nargs="+", default=["q4_k_m", "q8_0", "bf16"])
    parser.add_argument("--prefill", nargs="*", type=int, default=[128, 512, 2048])
    parser.add_argument("--depth", nargs="*", type=int, default=[128, 512, 4096])
    parser.add_argument("--sequences", nargs="*", type=int, default=[1, 4, 8, 16])
    parser.add_argument("--cached", type=int, default=1000, help="tokens of prefix; 0: leave out")
    parser.add_argument("--decode", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    names = [peer.option for peer in PEERS]
    parser.add_argument("--peers", nargs="*", choices=names, default=names)
    parser.add_argument("--llama-cpp", metavar="PYTHON", help="interpreter that has the package")
    parser.add_argument("--mistralrs", metavar="PYTHON", help="likewise")
    parser.add_argument("--out", type=Path, default=HERE / "out")
    parser.add_argument("--chart", type=Path, help="PNG to write; OUT/speed.png otherwise")
    parser.add_argument("--quick", action="store_true", help="ours and llama.cpp, in 5 minutes")
    if "--quick" in sys.argv:
        parser.set_defaults(**QUICK, peers=["llamacpp"])
    args = parser.parse_args()
    args.out.mkdir(exist_ok=True)
    given = {"llamacpp": args.llama_cpp, "mistral-rs": args.mistralrs}
    args.interpreters = {
        peer.option: given[peer.option] or peer.interpreter(args.out)
        for peer in PEERS
        if peer.option in args.peers
    }
    return args


def main() -> None:
    args = options()
    read = bandwidth()
    results: dict[str, Any] = {
        "machine": platform.processor() or platform.machine(),
        "threads": args.threads,
        "rounds": args.rounds,
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
    draw(results, args.chart or args.out / "speed.png")


if __name__ == "__main__":
    main()
