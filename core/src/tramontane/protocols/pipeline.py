"""What a pipeline offers the runner. One kind of model, one pipeline class."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, runtime_checkable

from attrs import frozen

from tramontane.hooks.specs import ModelKind

if TYPE_CHECKING:
    from tramontane.hooks.manager import PluginManager

Progress = Callable[[int, int, str], None]
"""``progress(done_bytes, total_bytes, tensor_name)`` while weights are loaded."""

Reserve = Callable[[int], int | None]
"""``reserve(nbytes)`` before a model takes that much for weights and cache, all in all; again where
more becomes known. Unloads other models and waits until there is room. Returns the bytes that are
then left for it, None for no limit; raises `MemoryPlanError` when it can never fit."""


def unlimited(nbytes: int) -> None:
    """A `Reserve` where nobody counts."""


@frozen(kw_only=True)
class PipelineOptions:
    """How a pipeline is to be run; the runner's settings that do not select a model.

    Attributes:
        max_seqs: sequences that run together.
        no_kv_cache: recompute the whole sequence at every step.
        prefix_cache_n: finished sequences whose cache blocks are kept for reuse; 0 for none.
        token_source: where the hub's token comes from.
        chat_template, jinja_explicit: see `tramontane.text.chat_template`.
        context_len: tokens the KV cache must hold, or None to plan it.
        cache_bytes: memory for the KV cache, or None to plan it.
        cache_fraction: share of the device's memory for weights and cache, 0 to 1, or None.
        block_size: tokens of a cache block.
        cache_type: a ``PagedCacheType`` or its name: how keys and values are stored.
        device_layers: (accelerator, layers there) in the order of the layers, or None to place
            them by memory.
        in_situ_quant: type that weights are packed to while they are loaded, or None.
        reserve: called by the pipeline before it takes memory.
        seed: makes sampling reproducible; None draws one.
        on_progress: told about weights being loaded.
        plugins: where architectures, formats and kernels are looked up.
    """

    max_seqs: int = 16
    no_kv_cache: bool = False
    prefix_cache_n: int = 16
    token_source: str = "cache"
    chat_template: str | None = None
    jinja_explicit: str | None = None
    context_len: int | None = None
    cache_bytes: int | None = None
    cache_fraction: float | None = None
    block_size: int = 32
    cache_type: str = "auto"
    device_layers: tuple[tuple[int, int], ...] | None = None
    in_situ_quant: str | None = None
    reserve: Reserve = unlimited
    seed: int | None = None
    on_progress: Progress | None = None
    plugins: PluginManager


@runtime_checkable
class Pipeline(Protocol):
    """A loaded model ready to serve. The target of a `PipelineSpec`.

    What each kind serves beyond this is looked up by the runner by name: ``chat`` and
    ``complete`` (text, vision), ``embed``, ``generate_image``, ``generate_audio``,
    ``tokenize``, ``detokenize``. One that chats may say by ``shows_tools`` that its template shows
    the model no tools; those of the runner are then not offered to it.
    """

    kind: ClassVar[ModelKind]

    @classmethod
    def load(cls, which: Any, options: PipelineOptions) -> Self:
        """Bring the model up.

        Args:
            which: a `tramontane.Which` variant.

        Raises:
            ModelLoadError: see `tramontane.errors`.
        """
        ...

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
