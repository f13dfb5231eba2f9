"""What choosing the next tokens costs a step, natively and with torch.

    python benchmarks/sampling.py [--vocab 32000 151936] [--rows 1 8] [--rounds 40]

Both ways take turns; the best round of each is given. Logits are wide: a few likely tokens and
normally distributed others.
"""

from __future__ import annotations

import argparse
import os
import random
import time

import torch

from tramontane.kernels.dispatch import ENVIRONMENT
from tramontane.sampling import Sampler, SamplerState, SamplingParams

SETTINGS = {
    "greedy": SamplingParams(),
    "temperature 1": SamplingParams(temperature=1.0),
    "top-k 40, top-p 0.95, min-p 0.05": SamplingParams(
        temperature=0.8, top_k=40, top_p=0.95, min_p=0.05
    ),
    "the same with penalties": SamplingParams(
        temperature=0.8,
        top_k=40,
        top_p=0.95,
        min_p=0.05,
        presence_penalty=0.1,
        repetition_penalty=1.1,
    ),
    "min-p 0.05": SamplingParams(temperature=1.0, min_p=0.05),
    "top-p 0.9": SamplingParams(temperature=0.8, top_p=0.9),
    "temperature 1.5, top-p 0.95": SamplingParams(temperature=1.5, top_p=0.95),
}
CONTEXT = 600
"""Tokens that penalties go by."""


class Way:
    """A sampler, and its sequences, with one kind of kernels."""

    def __init__(self, kernels: str, params: SamplingParams, logits: torch.Tensor) -> None:
        rng = random.Random(0)
        context = [rng.randrange(logits.shape[1]) for _ in range(CONTEXT)]
        self._logits, self._sampler = logits, Sampler()
        self._states = [SamplerState(params, context, seed=row) for row in range(len(logits))]
        os.environ[ENVIRONMENT] = kernels  # chosen at the first step
        self._sampler.sample(logits, self._states)
        self.seconds = float("inf")

    def step(self) -> None:
        begin = time.perf_counter()
        self._sampler.sample(self._logits, self._states)
        self.seconds = min(self.seconds, time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vocab", type=int, nargs="+", default=[32_000, 151_936])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=40)
    args = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    print(f"{'vocab':>7} {'rows':>4}  {'settings':34} {'native':>8} {'torch':>8}  µs")
    for vocab in args.vocab:
        for rows in args.rows:
            logits = 2 * torch.randn(rows, vocab, generator=generator)
            logits[:, :50] += 8 * torch.rand(rows, 50, generator=generator)
            for name, params in SETTINGS.items():
                ways = [Way(kernels, params, logits) for kernels in ("auto", "reference")]
                for _ in range(args.rounds):
                    for way in ways:
                        way.step()
                native, reference = (1e6 * way.seconds for way in ways)
                print(f"{vocab:7} {rows:4}  {name:34} {native:8.0f} {reference:8.0f}")


if __name__ == "__main__":
    main()
