"""Running damaged files one by one, with limits on memory and time."""

from __future__ import annotations

import contextlib
import ctypes
import resource
import time
import traceback
import tracemalloc
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from random import Random

from attrs import frozen

from tramontane.errors import TramontaneError

from .mutation import mutate  # noqa: TID252
from .readers import READERS, Sample, refusals  # noqa: TID252

SLACK_BYTES, FACTOR = 4 << 20, 32
"""What Python may take for one file: so much, and so many times its size."""
NATIVE_SLACK_BYTES = 16 << 20
"""The same for all that the process maps, tensors and native libraries included, which grows in
larger steps; whoever believes a count that the file cannot hold exceeds it at once."""
LONGEST_SECS = 5.0
_STATM = Path("/proc/self/statm")
_M_MMAP_THRESHOLD = -3  # malloc.h


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
def limited(nbytes: int = 0) -> Iterator[None]:
    """Keep the process near the memory that it has now, where the system says how much that is.

    Args:
        nbytes: size of the file that is read.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if _STATM.exists():
        _map_large_allocations()
        pages = int(_STATM.read_text().split()[0])
        limit = pages * resource.getpagesize() + NATIVE_SLACK_BYTES + FACTOR * nbytes
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@cache
def _map_large_allocations() -> None:
    """Have malloc map large allocations anew, as far as nothing that it holds free is large enough:
    what it holds free counts for no limit."""
    with contextlib.suppress(AttributeError, OSError):  # a C library other than glibc
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 128 << 10)


def without_memory(cause: BaseException | None) -> bool:
    """Whether an error, or what it came from, is a refused allocation. Readers that refuse a file
    for any error of torch refuse it for this one as well, having asked for the memory."""
    while cause is not None:
        if isinstance(cause, MemoryError) or "allocate memory" in str(cause):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def damaged(samples: list[Sample], seed: int) -> tuple[Sample, bytes]:
    """The sample that ``seed`` chooses, and its bytes with the damage that it draws."""
    random = Random(seed)
    sample = random.choice(samples)
    other = random.choice(samples).data
    return sample, mutate(sample.data, sample.header, other, random, sample.spots)


def run(reader: str, sample: Sample, data: bytes, seed: int, directory: Path) -> Finding | None:
    """Read one file within limits; what went wrong, or None when it was read or refused."""
    for name, content in sample.beside.items():
        (directory / name).write_bytes(content)
    path = directory / sample.file
    path.write_bytes(data)
    refusals.clear()
    start = time.perf_counter()
    problem = None
    with limited(len(data)):
        before = tracemalloc.get_traced_memory()[0]
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
    greedy = next((cause for cause in refusals if without_memory(cause)), None)
    if problem is None and greedy is not None:
        problem = f"memory beyond the size of the file was asked for: {str(greedy)[:200]}"
    if problem is None and grown > SLACK_BYTES + FACTOR * len(data):
        problem = f"{grown} bytes of memory for a file of {len(data)}"
    if problem is None and took > LONGEST_SECS:
        problem = f"{took:.1f} seconds"
    return None if problem is None else Finding(reader, seed, f"{sample.name}: {problem}", data)


def places() -> set[str]:
    """Where in the readers the last file was refused, with the caller of what refused; that tells
    one kind of damage from another."""
    ends = (traceback.extract_tb(cause.__traceback__)[-2:] for cause in refusals)
    return {" ".join(f"{Path(f.filename).name}:{f.lineno}" for f in frames) for frames in ends}
