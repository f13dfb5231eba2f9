"""Measure loading, prefill, decoding and throughput, beside other engines; see README.md."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gguf
import torch
from attrs import frozen
from chart import draw
from peers import PEERS
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from synthetic import SHAPES, gguf_model

HERE = Path(__file__).parent
HEADINGS = {
    "load_secs": "load, s",
    "peak_mb": "peak after the first depth, MB",
    "peak_without_torch_mb": "peak without torch's import, MB",
    "last_peak_mb": "peak after everything, MB",
    "first_token_secs": "first token, prompt unknown, s",
    "cached_first_token_secs": "first token, prefix cached, s",
}
QUESTION_TOKENS = 16
"""What a prompt with a cached prefix goes on with."""
QUICK = {"formats": ["q4_k_m"], "prefill": [], "depth": [512], "sequences": [8], "decode": 32}
LONG_TOKENS = 1000
"""Prompts of more than these are measured in the first ``--long-rounds`` rounds only."""


@frozen
class Plan:
    """What is measured of one format: prompt lengths, depths to decode at, numbers of sequences,
    and tokens of a known prefix (0: none)."""

    prefill: Sequence[int]
    depth: Sequence[int]
    sequences: Sequence[int]
    cached: int


BARS = {
    "q4_k_m": Plan(prefill=[2048], depth=[512, 4096], sequences=[8], cached=1000),
    "q8_0": Plan(prefill=[], depth=[512], sequences=[], cached=0),
    "bf16": Plan(prefill=[], depth=[512], sequences=[], cached=0),
}
"""The figures that `publish.py` holds against their bars."""


class EngineEndedError(RuntimeError):
    """An engine's process is gone: it cannot load the model, or it failed on a command."""


class Worker:
    """An engine with one model loaded, in a process of its own; idle until it is told to run.

    Attributes:
        ready: what it said when it had loaded: ``load_secs`` and ``version``, and where they apply
            ``torch_mb``, ``token_bytes`` (of weights that a token reads), ``finds_prefixes`` (by
            itself, in prompts it has seen) and ``most_sequences``.
        peak_mb: of the process, so far.
    """

    def __init__(self, python: str, script: str, model: Path, threads: int, log: Path) -> None:
        command = [python, str(HERE / "engines" / script), str(model), str(threads)]
        pipe = subprocess.PIPE
        self._log = log
        # Packages of this environment are none of a peer's.
        hidden = {"PYTHONPATH"} if python != sys.executable else {}
        environment = {name: value for name, value in os.environ.items() if name not in hidden}
        with log.open("w") as said:
            self._process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=said, text=True, env=environment
            )
        self.ready: dict[str, Any] = self._answer()
        self.peak_mb = 0.0

    def run(self, **command: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        self.peak_mb = answer["peak_mb"]
        return answer

    def close(self) -> None:
        self._process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise EngineEndedError(f"{self._process.args} ended; see {self._log}")
        answer: dict[str, Any] = json.loads(line)
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


def measure(
    worker: Worker, plan: Plan, decode: int, most_tokens: float, bytes_per_sec: float
) -> dict[str, float]:
    """One round of what the engine can do, prompts above ``most_tokens`` left out."""
    figures = {}
    for depth in sorted(plan.depth):
        if depth <= most_tokens:
            got = worker.run(prompt=depth, decode=decode, sequences=1)
            figures[f"prefill {depth}"] = got["prefill"]
            figures[f"decode at {depth}"] = got["decode"]
            figures.setdefault("peak_mb", got["peak_mb"])
            share = got["decode"] * worker.ready["token_bytes"] / bytes_per_sec
            figures[f"share of bandwidth at {depth}"] = share
    for tokens in plan.prefill:
        if tokens not in plan.depth and tokens <= most_tokens:
            got = worker.run(prompt=tokens, decode=2, sequences=1)
            figures[f"prefill {tokens}"] = got["prefill"]
    for count in plan.sequences:
        if count > worker.ready.get("most_sequences", count):
            continue
        got = worker.run(prompt=128, decode=decode, sequences=count)
        figures[f"decode of {count}"] = got["decode"]
        figures[f"total of {count}"] = got["total"]
    prompt = plan.cached + QUESTION_TOKENS
    if plan.cached and prompt <= most_tokens:
        got = worker.run(prompt=prompt, decode=1, sequences=1)
        figures["first_token_secs"] = got["seconds"]
        if worker.ready.get("finds_prefixes"):
            again = worker.run(prompt=prompt, decode=1, sequences=1, cached=plan.cached)
            figures["cached_first_token_secs"] = again["seconds"]
    return figures


def start(name: str, file: Path, args: argparse.Namespace) -> dict[str, Worker]:
    """Every engine with one weight format loaded. One that ends is left out, and said to be."""
    engines = {"tramontane": (sys.executable, "ours.py", file)}
    for peer in PEERS:
        if peer.option in args.peers:
            python = args.interpreters[peer.option]
            model = peer.model(python, file, SHAPES[args.size], name)
            if model is not None:
                engines[peer.name] = (python, peer.script, model)
    started: dict[str, Worker] = {}
    for engine, (python, script, model) in engines.items():
        try:
            log = args.out / f"{Path(script).stem}.log"
            started[engine] = Worker(python, script, model, args.threads, log)
        except EngineEndedError as error:
            print(f"{name}: {engine} is left out: {error}", file=sys.stderr)
            continue
        started[engine].ready.setdefault("token_bytes", token_bytes(file))
    return started


def bench_format(
    name: str, args: argparse.Namespace, progress: Progress
) -> Iterator[tuple[dict[str, dict[str, float]], float]]:
    """After each round, one weight format's medians so far: of every engine, and of the bytes a
    second that memory gave."""
    task = progress.add_task(f"{name}: loading", total=None)
    file = gguf_model(args.out / f"{args.size}-{name}.gguf", SHAPES[args.size], name)
    started = start(name, file, args)
    args.versions |= {engine: worker.ready["version"] for engine, worker in started.items()}
    rounds: dict[str, list[dict[str, float]]] = {engine: [] for engine in started}
    reads = []
    progress.update(task, total=args.rounds * len(started))
    for nth in range(args.rounds):  # engines take turns: the machine's mood hits them alike
        most_tokens = math.inf if nth < args.long_rounds else LONG_TOKENS
        reads.append(bandwidth())
        for engine, worker in started.items():
            progress.update(task, description=f"{name}, round {nth + 1}: {engine}")
            figures = measure(worker, args.plans[name], args.decode, most_tokens, reads[-1])
            rounds[engine].append(figures)
            progress.advance(task)
        yield (
            {engine: summary(worker, rounds[engine]) for engine, worker in started.items()},
            statistics.median(reads),
        )
    for worker in started.values():
        worker.close()


def summary(worker: Worker, rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    """Medians of an engine's rounds; what only the first ones have is theirs alone."""
    figures = {key: statistics.median(r[key] for r in rounds if key in r) for key in rounds[0]}
    first_peak = rounds[0].get("peak_mb", worker.peak_mb)
    figures |= {"load_secs": worker.ready["load_secs"], "peak_mb": first_peak}
    figures["peak_without_torch_mb"] = first_peak - worker.ready.get("torch_mb", 0.0)
    figures["last_peak_mb"] = worker.peak_mb
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
    parser.add_argument(
        "--long-rounds", type=int, help=f"of those, with prompts above {LONG_TOKENS} tokens"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    names = [peer.option for peer in PEERS]
    parser.add_argument("--peers", nargs="*", choices=names, default=names)
    for peer in PEERS:
        parser.add_argument(
            f"--{peer.option}-python", metavar="PYTHON", help=f"interpreter with {peer.package}"
        )
    parser.add_argument("--out", type=Path, default=HERE / "out")
    parser.add_argument("--chart", type=Path, help="PNG to write; OUT/speed.png otherwise")
    parser.add_argument("--quick", action="store_true", help="ours and llama.cpp, in 5 minutes")
    parser.add_argument("--bars", action="store_true", help="figures that have a bar, no more")
    if "--quick" in sys.argv:
        parser.set_defaults(**QUICK, peers=["llamacpp"])
    args = parser.parse_args()
    args.out = args.out.resolve()
    args.out.mkdir(exist_ok=True)
    args.long_rounds = args.long_rounds or args.rounds
    plan = Plan(args.prefill, args.depth, args.sequences, args.cached)
    if args.bars and not BARS.keys() >= set(args.formats):
        parser.error(f"bars are set for {', '.join(BARS)}")
    args.plans = {name: BARS[name] if args.bars else plan for name in args.formats}
    args.interpreters = {
        peer.option: getattr(args, f"{peer.option}_python".replace("-", "_"))
        or peer.interpreter(args.out)
        for peer in PEERS
        if peer.option in args.peers
    }
    args.versions = {}
    return args


def processor() -> str:
    """Its name, as far as the system tells."""
    known = Path("/proc/cpuinfo")
    lines = known.read_text("utf-8").splitlines() if known.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return (names or [platform.processor() or platform.machine()])[0]


def main() -> None:
    args = options()
    results: dict[str, Any] = {
        "processor": processor(),
        "torch_instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": args.threads,
        "rounds": args.rounds,
        "long_rounds": args.long_rounds,
        "decode": args.decode,
        "size": args.size,
        "versions": args.versions,
        "read_gb_per_sec": {},
        "formats": {},
    }
    console = Console(width=None if sys.stdout.isatty() else 140)
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        for name in args.plans:
            for figures, read in bench_format(name, args, progress):
                results["formats"][name] = figures
                results["read_gb_per_sec"][name] = read / 1e9
                (args.out / "results.json").write_text(json.dumps(results, indent=1), "utf-8")
            console.print(
                table(f"Llama {args.size}, {name}, {args.threads} threads", figures, read)
            )
    draw(results, args.chart or args.out / "speed.png")


def table(model: str, figures: dict[str, dict[str, float]], read: float) -> Table:
    """One format's figures, a column an engine."""
    shown = Table("", *figures, title=f"{model}, reads {read / 1e9:.0f} GB/s")
    for key in next(iter(figures.values())):
        cells = (row.get(key) for row in figures.values())
        shown.add_row(HEADINGS.get(key, key), *("" if c is None else f"{c:.3g}" for c in cells))
    return shown


if __name__ == "__main__":
    main()
