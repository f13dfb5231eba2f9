"""What a pipeline offers the runner. One kind of model, one pipeline class."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol, runtime_checkable

from tramontane.hooks.specs import ModelKind


@runtime_checkable
class Pipeline(Protocol):
    """A loaded model ready to serve. Methods it has no use for raise `ModelKindError`.

    The runner calls nothing else of a model: what each kind serves beyond this (``chat``,
    ``complete``, ``embed``, ``generate_image``, ``generate_audio``) is looked up by name.
    """

    kind: ClassVar[ModelKind]

    @property
    def max_sequence_length(self) -> int | None:
        """Tokens of context, or None where the notion does not apply."""
        ...

    def stats(self) -> dict[str, Any]:
        """Counters of the engine behind it: blocks, hits, queue, tokens."""
        ...

    def close(self) -> None:
        """End the engine and free weights and cache. Requests still running end with
        `EngineClosedError`. Safe to call twice."""
        ...
