"""Measure loading, prefill, decoding and throughput; see README.md beside this file."""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from synthetic import SHAPES, gguf_model, safetensors_model

from tramontane import CompletionRequest, Runner, Which

HERE = Path(__file__).parent
OUT = HERE / "out"
PROMPT_TOKENS, DECODED_TOKENS, SEQUENCES = 512, 64, (1, 4, 8)
PLAIN = {"f32": torch.float32, "bf16": torch.bfloat16}
COLUMNS = {
    "load_secs": "load s",
    "prefill_tok_per_sec": "prefill tok/s",
    "decode_tok_per_sec": "decode tok/s",
    "bandwidth_share": "of bandwidth",
    **{f"total_tok_per_sec_{n}": f"{n} seq. tok/s" for n in SEQUENCES},
    "cached_first_token_secs": "cached first token s",
    "peak_mb": "peak MB",
}


def bandwidth() -> float:
    """Bytes a second that all threads together read from memory."""
    data = torch.ones(1 << 26)  # 256 MiB, beyond every cache
    best = min(timed(lambda: data.sum()) for _ in range(5))
    return data.nbytes / best


def timed(work: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def prompt(salt: int, tokens: int = PROMPT_TOKENS) -> str:
    """Text of so many byte tokens that shares no prefix with that of another salt."""
    return f"{salt:08d} {'the quick brown fox jumps over the lazy dog ' * 400}"[:tokens]


class Ours:
    """One model in a runner."""

    def __init__(self, which: Any) -> None:
        begin = time.perf_counter()
        self.runner = Runner(which=which, pa_ctxt_len=16384)
        self.load_secs = time.perf_counter() - begin
        self._salt = 0
        self.generate(4)

    def generate(self, tokens: int, text: str | None = None) -> Any:
        self._salt += 1
        request = CompletionRequest(
            prompt=prompt(self._salt) if text is None else text,
            max_tokens=tokens,
            temperature=0.0,
            ignore_eos=True,
        )
        response = self.runner.send_completion_request(request)
        return response.usage  # type: ignore[union-attr]

    def measure(self) -> dict[str, float]:
        """One round."""
        usage = self.generate(DECODED_TOKENS)
        figures = {
            "prefill_tok_per_sec": usage.avg_prompt_tok_per_sec,
            "decode_tok_per_sec": (usage.completion_tokens - 1) / usage.total_completion_time_sec,
        }
        self.generate(1, prompt(0))
        figures["cached_first_token_secs"] = timed(lambda: self.generate(1, prompt(0)))
        for count in SEQUENCES:
            with ThreadPoolExecutor(count) as pool:
                seconds = timed(lambda: list(pool.map(self.generate, [DECODED_TOKENS] * count)))  # noqa: B023
            figures[f"total_tok_per_sec_{count}"] = count * DECODED_TOKENS / seconds
        return figures


def llama_cpp(python: str, file: Path) -> dict[str, float]:
    """One round of llama.cpp, in its own interpreter."""
    script = HERE / "peers" / "llama_cpp.py"
    command = [python, str(script), str(file), str(PROMPT_TOKENS), str(DECODED_TOKENS)]
    command.append(str(torch.get_num_threads()))
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}


def bench_format(name: str, args: argparse.Namespace, read: float) -> dict[str, dict[str, float]]:
    """Figures of one weight format, by engine."""
    shape = SHAPES[args.size]
    file: Path | None = None
    if name in PLAIN:
        directory = safetensors_model(OUT / f"{args.size}-{name}", shape, PLAIN[name])
        ours = Ours(Which.Plain(str(directory)))
    else:
        file = gguf_model(OUT / f"{args.size}-{name}.gguf", shape, name)
        ours = Ours(Which.GGUF(str(file.parent), file.name))
    rounds: dict[str, list[dict[str, float]]] = {"tramontane": []}
    with ours.runner:
        for _ in range(args.rounds):  # engines take turns: the machine's mood hits them alike
            rounds["tramontane"].append(ours.measure())
            if args.llama_cpp and file is not None:
                rounds.setdefault("llama.cpp", []).append(llama_cpp(args.llama_cpp, file))
        # A decoded token reads every weight but the embedding, of which it takes one row.
        stats = ours.runner.stats()
        matrices = sum(r * c for r, c in shape.linears().values()) * shape.num_hidden_layers
        head = shape.vocab_size * shape.hidden_size
        token_bytes = stats["weight_bytes"] * (matrices + head) / (matrices + 2 * head)
    figures = {engine: medians(r) for engine, r in rounds.items()}
    for engine in figures.values():
        engine["bandwidth_share"] = engine["decode_tok_per_sec"] * token_bytes / read
    figures["tramontane"]["load_secs"] = ours.load_secs
    figures["tramontane"]["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SHAPES, default="small")
    parser.add_argument("--formats", nargs="+", default=["bf16", "q8_0", "q4_k"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--llama-cpp", metavar="PYTHON")
    args = parser.parse_args()
    OUT.mkdir(exist_ok=True)
    read = bandwidth()
    results: dict[str, Any] = {
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "read_gb_per_sec": read / 1e9,
        "size": args.size,
        "formats": {},
    }
    table = Table(
        title=f"Llama {args.size}, {results['threads']} threads, memory reads {read / 1e9:.0f} GB/s"
    )
    for heading in ("weights", "engine", *COLUMNS.values()):
        table.add_column(heading, justify="left" if heading in ("weights", "engine") else "right")
    for name in args.formats:
        figures = results["formats"][name] = bench_format(name, args, read)
        for engine, row in figures.items():
            table.add_row(name, engine, *(_cell(key, row.get(key)) for key in COLUMNS))
    (OUT / "results.json").write_text(json.dumps(results, indent=1), "utf-8")
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _cell(key: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0%}" if key == "bandwidth_share" else f"{value:.3g}"


if __name__ == "__main__":
    main()
