"""What other threads leave for the engine's thread."""

from __future__ import annotations

import time
from collections.abc import Iterable
from itertools import count
from threading import Condition

from tramontane.engine.sequence import Sequence
from tramontane.errors import EngineClosedError


class Mailbox:
    """New and canceled sequences, and the wish to end. All methods may be called from anywhere."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._submitted: list[Sequence] = []
        self._canceled: list[Sequence] = []
        self._arrivals = count()
        self.closed = False

    @property
    def has_mail(self) -> bool:
        return bool(self._submitted or self._canceled)

    def submit(self, seqs: Iterable[Sequence]) -> None:
        """Queue sequences in this order.

        Raises:
            EngineClosedError: nobody will come for them.
        """
        with self._changed:
            if self.closed:
                raise EngineClosedError(
                    "The model has been closed and takes no more requests; load it again."
                )
            now = time.perf_counter()
            for seq in seqs:
                seq.arrival = next(self._arrivals)
                seq.timings.arrived = now
                self._submitted.append(seq)
            self._changed.notify()

    def cancel(self, seqs: Iterable[Sequence]) -> None:
        with self._changed:
            self._canceled += seqs
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self.closed = True
            self._changed.notify()

    def wait(self) -> bool:
        """Block until there is mail. Returns False once closed."""
        with self._changed:
            self._changed.wait_for(lambda: self.closed or self.has_mail)
            return not self.closed

    def collect(self) -> tuple[list[Sequence], list[Sequence]]:
        """Take the mail: submitted and canceled sequences."""
        with self._changed:
            mail = self._submitted, self._canceled
            self._submitted, self._canceled = [], []
            return mail
