"""What an architecture plug-in implements, and the weight rules it may declare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

from attrs import frozen
from torch import Tensor

from tramontane.protocols.batch import ForwardBatch
from tramontane.protocols.cache import CacheSpec, LayerCache


@frozen
class Drop:
    """Checkpoint tensors whose name matches ``pattern`` (a regular expression, whole name) are
    not part of the model: buffers, training leftovers. With ``beyond``, the name of an integer
    property of the config, only those whose first group, a layer index, is not below it: layers
    that predict further tokens."""

    pattern: str
    beyond: str | None = None


@frozen
class Rename:
    """``pattern`` (whole name) is replaced by ``into``, with ``\\1`` … for its groups."""

    pattern: str
    into: str


@frozen
class Stack:
    """Tensors matching ``pattern``, whose last group is an index, become one parameter
    ``into`` (``\\1`` … for the other groups) stacked along a new first axis in index order.
    Used for experts."""

    pattern: str
    into: str


@frozen
class Split:
    """A tensor matching ``pattern`` is cut along ``axis`` into ``into``, with lengths ``sizes``,
    each the name of an integer property of the config or a number. Where ``interleaved``, parts
    of equal length take turns: row 0 belongs to the first, row 1 to the second."""

    pattern: str
    into: tuple[str, ...]
    sizes: tuple[str | int, ...]
    axis: int = 0
    interleaved: bool = False


@frozen
class Transpose:
    """A tensor matching ``pattern`` becomes ``into`` with its last two axes exchanged: a linear
    stored as [in, out]. A packed one keeps its axes, whose order never varies."""

    pattern: str
    into: str


@frozen
class Tie:
    """Parameters ``first`` and ``second`` are one tensor when the config's ``when`` is true;
    the checkpoint may store either name."""

    first: str
    second: str
    when: str = "tie_word_embeddings"


WeightRule = Drop | Rename | Stack | Split | Transpose | Tie


class ModelConfig(Protocol):
    """A frozen dataclass with Hugging Face field names.

    Engine and loader read these; everything else is the model's own business.
    """

    @property
    def vocab_size(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def num_hidden_layers(self) -> int: ...
    @property
    def max_position_embeddings(self) -> int: ...

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read ``config.json``.

        Raises:
            ConfigError: a required key is missing, or a value is one that this
                architecture's arithmetic does not cover; the message names the key.
        """
        ...


@runtime_checkable
class Architecture(Protocol):
    """A ``torch.nn.Module`` class: ``Model(config)``, then ``forward`` and ``logits``.

    It is built on the meta device and named as in the checkpoint; it knows nothing of
    quantization, adapters, devices or ranks. A module of it may name, in a class attribute
    ``FLOAT32``, parameters of its own that must not be rounded to the model's dtype, and in
    ``EXACT``, linears of its own whose activations must not be, as rounding would change decisions.

    Class attributes:
        Config: the `ModelConfig` class.
        WEIGHTS: how checkpoint names differ from module names; empty for most models.
        PARALLEL_PLAN: module name pattern (``*`` for a layer index) → ``"column"`` or ``"row"``.
    """

    Config: ClassVar[type[Any]]
    WEIGHTS: ClassVar[Sequence[WeightRule]]
    PARALLEL_PLAN: ClassVar[Mapping[str, str]]

    def __init__(self, config: Any) -> None: ...

    @staticmethod
    def cache_specs(config: Any) -> Sequence[CacheSpec]:
        """One spec a layer, in layer order."""
        ...

    def forward(self, batch: ForwardBatch, caches: Sequence[LayerCache]) -> Tensor:
        """Packed tokens to hidden states after the final norm, [T, hidden]."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """[N, hidden] to [N, vocab]. Called with the rows that need logits only, and never of
        embedding models, which need not have it."""
        ...
