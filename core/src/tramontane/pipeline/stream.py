"""`GenerationStream`: one request's output, for a loop, an event loop, or all at once."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar

from tramontane.engine.output import Delta, OutputQueue

Chunk = TypeVar("Chunk")
Response = TypeVar("Response")
Response_co = TypeVar("Response_co", covariant=True)


class Answer(Protocol[Chunk, Response_co]):
    """Turns deltas of the engine into what the caller receives."""

    def chunks(self, delta: Delta) -> list[Chunk]:
        """What ``delta`` adds, as chunks; maybe none yet."""
        ...

    def response(self) -> Response_co:
        """Everything, once the last delta has been given to `chunks`."""
        ...


class GenerationStream(Generic[Chunk, Response]):
    """Iterate for chunks, with ``for`` or ``async for``, or call `collect` for the response.

    Closing it, leaving its ``with`` block or dropping it cancels the request, unless the engine
    has finished with it already.

    Args:
        output: the request's deltas.
        answer: makes chunks of them.
        cancel: tells the engine that nobody wants the rest; any thread may call it, any time.
    """

    def __init__(
        self,
        output: OutputQueue,
        answer: Answer[Chunk, Response],
        cancel: Callable[[], None],
    ) -> None:
        self._output = output
        self._answer = answer
        self._cancel = cancel
        self._ready: deque[Chunk] = deque()
        self._closed = False

    def collect(self) -> Response:
        """Wait for the whole answer.

        Raises:
            TramontaneError: the request failed; with several choices, the first that did.
        """
        try:
            for delta in self._output:
                self._take(delta)
        except BaseException:
            self.close()
            raise
        self._closed = True
        return self._answer.response()

    async def collect_async(self) -> Response:
        """`collect` for asyncio; cancelling the task cancels the request."""
        try:
            async for delta in self._output:
                self._take(delta)
        except BaseException:
            self.close()
            raise
        self._closed = True
        return self._answer.response()

    def response(self) -> Response:
        """Everything, once all chunks have been read."""
        return self._answer.response()

    def close(self) -> None:
        """Cancel what is still running. Safe to call twice."""
        if not self._closed:
            self._closed = True
            self._ready.clear()
            self._cancel()

    def _take(self, delta: Delta) -> None:
        if delta.error is not None:
            raise delta.error
        self._ready.extend(self._answer.chunks(delta))

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        try:
            while not self._ready:
                if self._closed:
                    raise StopIteration
                self._take(self._output.get())
        except EOFError:
            self._closed = True
            raise StopIteration from None
        except StopIteration:
            raise
        except BaseException:
            self.close()
            raise
        return self._ready.popleft()

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        try:
            async for delta in self._output:
                self._take(delta)
                while self._ready:
                    yield self._ready.popleft()
            self._closed = True
        finally:
            self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # An interpreter that shuts down may have taken the engine apart already.
        if not getattr(self, "_closed", True):
            self.close()
