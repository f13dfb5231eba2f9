"""Fuzz the readers of weight files for a while: ``make fuzz SECONDS=600``.

Each reader runs in a process of its own, which is started again where it dies. Damage is done to
valid files and to those of the corpus; a file that is refused where none was refused before joins
it. A file that is neither read nor refused is written to ``tests/fuzz/found`` under its reader and
seed; make a test of it in ``test_readers.py``.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

from . import corpus  # noqa: TID252
from .cases import damaged, places, run  # noqa: TID252
from .readers import READERS, Sample, refusals  # noqa: TID252

FOUND = Path(__file__).parent / "found"
HANG_SECS = 30
EXIT_FOUND = 3


def work(reader: str, first: int, seconds: float) -> int:
    """One process: damage and read until time is up; seeds from ``first`` on.

    Returns:
        Kinds of failure that were found.
    """
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("error")
    faulthandler.enable()
    FOUND.mkdir(exist_ok=True)
    end, seed, seen = time.monotonic() + seconds, first, set()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        samples = READERS[reader].samples(directory)
        for sample in samples:
            finding = run(reader, sample, sample.data, -1, directory)
            for problem in (finding and finding.problem, *refusals):
                if problem:
                    print(f"{reader}: {sample.name} is valid but fails: {problem}", flush=True)
                    seen.add(sample.name)
        kept: dict[str, Sample] = {}
        pool = [*samples, *corpus.load(reader, samples)]
        for sample in pool[len(samples) :]:
            run(reader, sample, sample.data, -1, directory)
            kept |= {place: sample for place in places() if place not in kept}
        before = len(kept)
        while time.monotonic() < end:
            sample, data = damaged(pool, seed)
            (FOUND / f"{reader}.current").write_bytes(data)
            faulthandler.dump_traceback_later(HANG_SECS, exit=True)
            finding = run(reader, sample, data, seed, directory)
            faulthandler.cancel_dump_traceback_later()
            if finding is not None:
                where = finding.problem.rpartition(" at ")[2]
                if where not in seen:
                    seen.add(where)
                    print(f"{reader} {seed}: {finding.problem}", flush=True)
                    (FOUND / f"{reader}-{seed}").write_bytes(data)
            new = places() - set(kept) if finding is None else set()
            if new:
                pool.append(corpus.derived(sample, data, str(seed)))
                kept |= dict.fromkeys(new, pool[-1])
            seed += 1
        if len(kept) > before:
            corpus.save(reader, corpus.smallest(kept))
    (FOUND / f"{reader}.current").unlink(missing_ok=True)
    print(
        f"{reader}: {seed - first} files from seed {first}, refused in {len(kept)} places "
        f"({len(kept) - before} new), {len(seen)} kinds of failure",
        flush=True,
    )
    return len(seen)


def main(arguments: list[str] | None = None) -> int:
    """Fuzz each reader for its share of the time; 0 where all files were read or refused."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--reader", choices=sorted(READERS), action="append")
    parser.add_argument("--first", type=int, default=int(time.time()) % 10**6 * 1000)
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    chosen = args.reader or list(READERS)
    if args.in_process:
        return EXIT_FOUND if work(chosen[0], args.first, args.seconds) else 0
    failed, first = False, args.first
    for reader in chosen:
        end = time.monotonic() + args.seconds / len(chosen)
        while (left := end - time.monotonic()) > 1:
            command = [sys.executable, "-m", "fuzz.run", "--in-process", "--reader", reader,
                       "--first", str(first), "--seconds", str(left)]  # fmt: skip
            code = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode
            failed |= code != 0
            current = FOUND / f"{reader}.current"
            if current.exists():
                kept = current.rename(FOUND / f"{reader}-died-{first}")
                print(f"{reader}: the process died ({code}) reading {kept}", flush=True)
            elif code not in (0, EXIT_FOUND):
                print(f"{reader}: the process ended ({code}) before it read a file", flush=True)
                return 1
            first += 1_000_000
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
