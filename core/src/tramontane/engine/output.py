"""What a sequence hands to its reader, and the queue it goes through."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from threading import Condition
from typing import Literal

from attrs import define, field, frozen

from tramontane.errors import TramontaneError

FinishReason = Literal["stop", "length", "canceled", "error"]

_log = logging.getLogger(__name__)


@frozen
class TokenLogprob:
    """One token of the output with its log probability.

    Attributes:
        token_id: vocabulary index.
        token: its text; a token that is only a part of a character shows as U+FFFD.
        bytes: its exact bytes.
        logprob: natural logarithm of its probability.
        top: the likeliest tokens at this place, best first; empty inside `top`.
    """

    token_id: int
    token: str
    bytes: bytes
    logprob: float
    top: tuple[TokenLogprob, ...] = ()


@define(eq=False)
class Delta:
    """What became known since the delta before.

    Attributes:
        text: new text; may be empty in the last delta.
        token_ids: tokens sampled since the last delta, also those without text of their own and
            the one that ended the sequence.
        logprobs: entries for the tokens that ``text`` is made of, when they were asked for.
        finish_reason: set in the sequence's last delta: ``"stop"`` (end-of-sequence token, stop
            token or stop string), ``"length"`` (max_tokens reached or context full),
            ``"canceled"`` or ``"error"``.
        error: why, with ``"error"``.
        index: which of several sequences of one request this is.
    """

    text: str = ""
    token_ids: list[int] = field(factory=list)
    logprobs: list[TokenLogprob] = field(factory=list)
    finish_reason: FinishReason | None = None
    error: TramontaneError | None = None
    index: int = 0


class OutputQueue:
    """Deltas of one request, from the engine's thread to any other thread or event loop.

    It has no bound, because a reader that stops must not stop the engine; what can pile up is
    one sequence's output. Iterate over it, with ``for`` or ``async for``, or call `get`.

    Args:
        num_seqs: sequences that write to it; it ends after that many last deltas.
        stream: wake readers at every delta. Otherwise only when all have ended, which spares
            the engine the interruptions when nobody looks at the parts.
        on_end: called once, on the thread that writes the last delta of all, whether or not
            anybody reads. It must return quickly.
    """

    def __init__(
        self,
        num_seqs: int = 1,
        *,
        stream: bool = True,
        on_end: Callable[[], None] | None = None,
    ) -> None:
        self._deltas: deque[Delta] = deque()
        self._changed = Condition()
        self._num_open = num_seqs
        self._stream = stream
        self._callback: Callable[[], None] | None = None
        self._on_end = on_end

    def put(self, delta: Delta) -> None:
        """Append; called by the engine only. Never blocks, never raises."""
        if delta.finish_reason is not None and self._num_open == 1 and self._on_end is not None:
            # Before readers wake: who has read the end may count on the request being over.
            try:
                self._on_end()
            except Exception:
                _log.exception("the end of a request could not be told")
        with self._changed:
            self._deltas.append(delta)
            if delta.finish_reason is not None:
                self._num_open -= 1
            if not (self._stream or self.ended):
                return
            self._changed.notify_all()
            callback = self._callback
        if callback is not None:
            try:
                callback()
            except Exception:  # the reader's event loop may be closed already
                _log.debug("output callback failed", exc_info=True)

    def get(self, timeout: float | None = None) -> Delta:
        """The next delta, waited for.

        Args:
            timeout: seconds; None waits for ever.

        Raises:
            TimeoutError: nothing came in time.
            EOFError: every sequence's last delta has been read.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._readable() or self.ended, timeout):
                raise TimeoutError(f"no output within {timeout} s")
            if not self._deltas:
                raise EOFError("every sequence of this request has ended")
            return self._deltas.popleft()

    def drain(self) -> list[Delta]:
        """Every delta that is there, without waiting."""
        with self._changed:
            if not self._readable():
                return []
            deltas = list(self._deltas)
            self._deltas.clear()
            return deltas

    @property
    def ended(self) -> bool:
        """Whether the last delta has been written (not necessarily read)."""
        return self._num_open <= 0

    def subscribe(self, callback: Callable[[], None] | None) -> None:
        """Call ``callback`` on the engine's thread whenever there is something to `drain`, and
        at once if there is now. It must return quickly. None ends that."""
        with self._changed:
            self._callback = callback
            ready = self._readable() or self.ended
        if ready and callback is not None:
            callback()

    def _readable(self) -> bool:
        return bool(self._deltas) and (self._stream or self.ended)

    def __iter__(self) -> Iterator[Delta]:
        while True:
            try:
                delta = self.get()
            except EOFError:
                return
            yield delta

    async def __aiter__(self) -> AsyncIterator[Delta]:
        loop = asyncio.get_running_loop()
        changed = asyncio.Event()

        def wake() -> None:
            loop.call_soon_threadsafe(changed.set)

        self.subscribe(wake)
        try:
            while True:
                changed.clear()
                ended = self.ended  # before draining: whatever came earlier is then drained
                for delta in self.drain():
                    yield delta
                if ended:
                    return
                await changed.wait()
        finally:
            self.subscribe(None)
