"""Weight file formats: what a reader of safetensors, GGUF, GGML or UQFF gives the loader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from attrs import frozen
from torch import Tensor

from tramontane.protocols.quantizer import PackedWeight

if TYPE_CHECKING:
    import tokenizers


@frozen(kw_only=True)
class EmbeddedTokenizer:
    """A tokenizer that travels inside a weight file.

    Attributes:
        tokenizer: ready to encode; special tokens registered.
        bos_token, eos_token, unk_token: their texts, as chat templates want them.
        eos_token_ids: every id that ends a turn.
        add_bos: whether raw completions begin with ``bos_token``.
        add_eos: whether a text ends with ``eos_token``; counts where it is read and not continued.
        chat_template: jinja source, or None.
    """

    tokenizer: tokenizers.Tokenizer
    bos_token: str | None
    eos_token: str | None
    unk_token: str | None
    eos_token_ids: tuple[int, ...]
    add_bos: bool
    chat_template: str | None
    add_eos: bool = False


@runtime_checkable
class Checkpoint(Protocol):
    """An opened set of weight files. Tensors are mapped, not read, until they are asked for.

    Names are those of Hugging Face checkpoints, whatever the file calls them.
    """

    def config(self) -> Mapping[str, Any] | None:
        """``config.json`` content derived from the file's own metadata, or None when the format
        carries none."""
        ...

    def tokenizer(self) -> EmbeddedTokenizer | None:
        """The tokenizer inside the file, or None."""
        ...

    def names(self) -> Sequence[str]:
        """Every tensor."""
        ...

    def tensor(self, name: str) -> Tensor | PackedWeight:
        """One tensor: plain ones as views of the mapped file, quantized ones packed.

        Raises:
            CheckpointError: the data does not lie inside the file, or the type is unknown.
        """
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors as stored."""
        ...

    def close(self) -> None:
        """Forget the mapping. Tensors handed out stay valid."""
        ...


class CheckpointView:
    """A `Checkpoint` over another one: everything passes through until a subclass overrides it.

    Args:
        inner: the checkpoint below; closed with the view.
    """

    def __init__(self, inner: Checkpoint) -> None:
        self.inner = inner

    def config(self) -> Mapping[str, Any] | None:
        return self.inner.config()

    def tokenizer(self) -> EmbeddedTokenizer | None:
        return self.inner.tokenizer()

    def names(self) -> Sequence[str]:
        return self.inner.names()

    def tensor(self, name: str) -> Tensor | PackedWeight:
        return self.inner.tensor(name)

    def packed_bytes(self, name: str) -> int | None:
        """Bytes of a packed weight that `tensor` has to convert, for whoever only wants to know
        its size; None for all others, which cost nothing to look at."""
        return None

    def release(self, name: str) -> None:
        """Let go of the pages of a tensor that has been copied, where the file can."""
        release = getattr(self.inner, "release", None)
        if release is not None:
            release(name)

    @property
    def nbytes(self) -> int:
        return self.inner.nbytes

    def close(self) -> None:
        self.inner.close()


class CheckpointFormat(Protocol):
    """The target of a `CheckpointSpec`."""

    def open(self, files: Sequence[Path]) -> Checkpoint:
        """Open one model's files, all shards in order.

        Raises:
            CheckpointError: wrong magic, truncated, absurd counts or offsets, shards that do
                not belong together; the message names file and field.
        """
        ...
