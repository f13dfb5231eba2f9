"""Running damaged files one by one, with limits on memory and time."""

from __future__ import annotations

import contextlib
import resource
import time
import traceback
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from random import Random

from attrs import frozen

from tramontane.errors import TramontaneError

from .mutation import mutate  # noqa: TID252
from .readers import READERS, Sample, refusals  # noqa: TID252

SLACK_BYTES, FACTOR = 4 << 20, 32
"""What Python may take for one file: so much, and so many times its size."""
NATIVE_BYTES = 512 << 20
"""What the process may grow by in all; whoever believes an absurd count exceeds it at once."""
LONGEST_SECS = 5.0
_STATM = Path("/proc/self/statm")


@frozen
class Finding:
    """A file that a reader did not survive.

    Attributes:
        reader: name in `READERS`.
        seed: of the damage.
        problem: what happened.
        data: the file.
    """

    reader: str
    seed: int
    problem: str
    data: bytes


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Keep the process near the memory that it has now, where the system says how much that is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if _STATM.exists():
        pages = int(_STATM.read_text().split()[0])
        limit = pages * resource.getpagesize() + NATIVE_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def damaged(samples: list[Sample], seed: int) -> tuple[Sample, bytes]:
    """The sample that ``seed`` chooses, and its bytes with the damage that it draws."""
    random = Random(seed)
    sample = random.choice(samples)
    other = random.choice(samples).data
    return sample, mutate(sample.data, sample.header, other, random, sample.spots)


def run(reader: str, sample: Sample, data: bytes, seed: int, directory: Path) -> Finding | None:
    """Read one file, inside `limited`; what went wrong, or None when it was read or refused."""
    for name, content in sample.beside.items():
        (directory / name).write_bytes(content)
    path = directory / sample.file
    path.write_bytes(data)
    refusals.clear()
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    start = time.perf_counter()
    problem = None
    try:
        READERS[reader].read(path)
    except TramontaneError as cause:
        refusals.append(cause)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as cause:  # a panic of a native library is no Exception
        last = traceback.extract_tb(cause.__traceback__)[-1]
        problem = f"{type(cause).__name__}: {str(cause)[:200]} at {last.filename}:{last.lineno}"
    grown = tracemalloc.get_traced_memory()[1] - before
    took = time.perf_counter() - start
    if problem is None and grown > SLACK_BYTES + FACTOR * len(data):
        problem = f"{grown} bytes of memory for a file of {len(data)}"
    if problem is None and took > LONGEST_SECS:
        problem = f"{took:.1f} seconds"
    return None if problem is None else Finding(reader, seed, f"{sample.name}: {problem}", data)
