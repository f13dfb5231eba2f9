"""What the engines of `run.py` share: commands in, figures out. Standard library only, since each
engine runs in an environment of its own."""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

WORDS = "the quick brown fox jumps over the lazy dog "


def peak_mb() -> float:
    """Most memory this process has held, file pages it mapped included.

    Linux counts what the parent held into ``ru_maxrss``, so there the process's own mark is read.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


class Prompts:
    """Texts of which a byte is a token. No two begin alike, unless asked to."""

    def __init__(self) -> None:
        self._count = 0
        self._head = ""

    def next(self, tokens: int, cached: int = 0) -> str:
        """A text; its first ``cached`` tokens are those of the text before."""
        self._count += 1
        if cached:
            return self._body(cached) + f"{self._count:0{tokens - cached}d}"
        self._head = f"{self._count:08d} "
        return self._body(tokens)

    def _body(self, tokens: int) -> str:
        return (self._head + WORDS * (tokens // len(WORDS) + 1))[:tokens]


def timed_together(complete: Callable[[str], Any], texts: list[str]) -> tuple[float, list[Any]]:
    """Seconds of answering all texts at once, and the answers."""
    begin = time.perf_counter()
    with ThreadPoolExecutor(len(texts)) as pool:
        answers = list(pool.map(complete, texts))
    return time.perf_counter() - begin, answers


def serve(load: Callable[[str, int], Callable[..., dict[str, float]]], **known: Any) -> None:
    """Load the model that the command line names, say so, then run one JSON command a line.

    Args:
        load: from a model's path and a number of threads to what runs commands.
        known: to tell when ready; ``version`` must be there, see `run.Worker`.
    """
    # Libraries print to standard output too; the answers keep it to themselves.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    begin = time.perf_counter()
    run = load(sys.argv[1], int(sys.argv[2]))
    run(prompt=8, decode=2, sequences=1)
    answers.write(json.dumps({"load_secs": time.perf_counter() - begin, **known}) + "\n")
    for line in sys.stdin:
        figures = run(**json.loads(line))
        answers.write(json.dumps({**figures, "peak_mb": peak_mb()}) + "\n")
    answers.close()
    os._exit(0)  # an engine's threads have nothing left to say
