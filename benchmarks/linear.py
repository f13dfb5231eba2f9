"""What a matrix costs: its products a second, for each type of weights and number of tokens.

    python benchmarks/linear.py [TYPE ...] [--tokens 1 8 512] [--shape 2048 5632] [--rounds 15]

Types take turns, so that whatever else the machine does falls on all alike. Of each type the best
round is given, which says what the kernel can do, and the median.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from synthetic import random_blocks

from tramontane_gguf.blocks import GgmlWeight
from tramontane_kernels_cpu.library import native, why_not
from tramontane_kernels_cpu.linear import packed_linear, prepare
from tramontane_kernels_cpu.weights import NativeWeight

TYPES = (
    "q2_k", "q3_k", "iq4_xs", "iq4_nl", "q4_0", "q4_k", "mxfp4", "q5_0", "q5_k", "q6_k", "q8_0",
)  # fmt: skip
MIN_SECS = 0.01
"""Of one measurement; a matrix that takes less is multiplied several times."""


def billions_per_sec(x: torch.Tensor, weight: NativeWeight, products: int) -> float:
    """10^9 products of two numbers a second."""
    calls, start = 0, time.perf_counter()
    while (secs := time.perf_counter() - start) < MIN_SECS:
        packed_linear(x, weight)
        calls += 1
    return products * calls / secs / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("types", nargs="*", default=TYPES, metavar="TYPE")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 8, 512])
    parser.add_argument("--shape", type=int, nargs=2, default=[2048, 5632], help="rows, columns")
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    library = native()
    if library is None:
        parser.error(f"there are no native kernels to measure: {why_not()}")
    rows, cols = given.shape
    rng = np.random.default_rng(0)
    weights = {
        name: prepare(
            GgmlWeight.from_name(
                torch.from_numpy(random_blocks(rng, rows, cols, name)).view(-1), name, (rows, cols)
            )
        )
        for name in given.types
    }
    speeds = defaultdict[tuple[str, int], list[float]](list)
    for tokens in given.tokens:
        x = torch.randn(tokens, cols, generator=torch.Generator().manual_seed(0))
        for _ in range(given.rounds):
            for name, weight in weights.items():
                speeds[name, tokens].append(billions_per_sec(x, weight, rows * cols * tokens))
    title = f"10^9 products a second, best and median; {rows} x {cols}, {library.isa}, "
    table = Table(title=title + f"{torch.get_num_threads()} threads")
    table.add_column("weights")
    for tokens in given.tokens:
        table.add_column(f"{tokens} tokens", justify="right")
    for name in given.types:
        found = [speeds[name, tokens] for tokens in given.tokens]
        table.add_row(name, *(f"{max(s):.1f}  {statistics.median(s):.1f}" for s in found))
    Console().print(table)


if __name__ == "__main__":
    main()
