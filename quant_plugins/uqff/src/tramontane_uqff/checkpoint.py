"""Opening UQFF files as a `tramontane.protocols.Checkpoint`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from tramontane.errors import CheckpointError
from tramontane.hooks import PluginManager, plugin_manager
from tramontane.loading.config import read_config
from tramontane.loading.loader import BoundModel
from tramontane.loading.stored import StoredModel
from tramontane.loading.tensors import SafetensorsCheckpoint
from tramontane.protocols import Checkpoint, EmbeddedTokenizer, PackedWeight
from tramontane_uqff.blobs import Blobs
from tramontane_uqff.conversion import convert
from tramontane_uqff.entries import Entries
from tramontane_uqff.layout import RESIDUAL
from tramontane_uqff.order import layer_names
from tramontane_uqff.parts import StoredWeight
from tramontane_uqff.selection import Fetch, find_shards
from tramontane_uqff.writer import check_output, first_shard, write_bound

_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_LONGEST_NUMBER = 9


class UqffFormat:
    """The ``.uqff`` checkpoint format."""

    def find(self, names: Sequence[str], fetch: Fetch) -> list[Path]:
        """All shards of what ``names`` call; see `tramontane_uqff.selection.find_shards`."""
        return find_shards(names, fetch)

    def open(self, files: Sequence[Path]) -> Checkpoint:
        """Open one model: all its shards, and ``residual.safetensors`` beside them.

        Raises:
            CheckpointError: a file is corrupt or of a version from the future, the residual is
                missing, or the shards do not belong together.
            UnsupportedError: generation 0 of an architecture whose order is not known.
        """
        if not files:
            raise CheckpointError("no UQFF file was given")
        residual = files[0].parent / RESIDUAL
        if not residual.is_file():
            raise CheckpointError(
                f"{residual} is missing: UQFF keeps there what is not quantized; fetch it from "
                f"where {files[0].name} came from"
            )
        return UqffCheckpoint(files, residual, plugin_manager())

    def check_output(self, path: Path) -> None:
        """See `tramontane_uqff.writer.check_output`."""
        check_output(path)

    def first_file(self, path: Path) -> Path:
        """See `tramontane_uqff.writer.first_shard`."""
        return first_shard(path)

    def save(self, bound: BoundModel, path: Path, type_name: str) -> None:
        """Write a model that was quantized while it was loaded; see
        `tramontane_uqff.writer.write_bound`."""
        write_bound(bound, path, type_name, plugin_manager())

    def write(self, model: StoredModel, path: Path, type_name: str, **options: Any) -> None:
        """Quantize a stored model and write it; see `tramontane_uqff.conversion.convert`."""
        convert(model, path, type_name, plugin_manager(), **options)


class Source(Protocol):
    """The quantized layers of either generation."""

    def names(self) -> list[str]: ...

    def stored(self, name: str) -> StoredWeight | Tensor: ...

    def release(self, name: str) -> None: ...

    @property
    def nbytes(self) -> int: ...


class UqffCheckpoint:
    """One opened model. Weights come packed, as views of the mapped files where their data are
    aligned.

    Args:
        files: its shards.
        residual: everything else.
        plugins: where the quantizers of its formats are looked up.
    """

    def __init__(self, files: Sequence[Path], residual: Path, plugins: PluginManager) -> None:
        self._path = files[0]
        self._plugins = plugins
        self._residual = SafetensorsCheckpoint([residual])
        shards = [(path, SafetensorsCheckpoint([path])) for path in files]
        names = [name for _, shard in shards for name in shard.names()]
        if not names:
            raise CheckpointError(f"{files[0]} holds no tensors")
        self._source: Source
        self._plain = list(self._residual.names())
        if all(n.isascii() and n.isdecimal() and len(n) <= _LONGEST_NUMBER for n in names):
            self._source = Blobs(shards, self._order())
            layers = set(self._source.names())
            # Writers of generation 0 kept some layers in the residual as well.
            self._plain = [name for name in self._plain if name not in layers]
        else:
            self._source = Entries(shards)
            twice = next((n for n in self._source.names() if n in set(self._plain)), None)
            if twice is not None:
                raise CheckpointError(
                    f"tensor {twice!r} is in {files[0]} and in {residual}; they do not belong "
                    f"together"
                )
        self._layers = set(self._source.names())

    def _order(self) -> Callable[[int], list[str]]:
        config = read_config(self._path.parent)
        prefix = "model." if any(n.startswith("model.") for n in self._plain) else ""
        return lambda count: layer_names(config, count, prefix=prefix, where=str(self._path))

    def config(self) -> Mapping[str, Any] | None:
        """``config.json`` where it must be read otherwise than it stands: a head that is stored
        beside the embedding, quantized apart from it, is no longer tied to it."""
        names = {*self._layers, *self._plain}
        if not {_HEAD, _EMBEDDING} <= names:
            return None
        return read_config(self._path.parent) | {"tie_word_embeddings": False}

    def tokenizer(self) -> EmbeddedTokenizer | None:
        return None

    def names(self) -> Sequence[str]:
        return [*self._source.names(), *self._plain]

    def tensor(self, name: str) -> Tensor | PackedWeight:
        if name not in self._layers:
            return self._residual.tensor(name)
        stored = self._source.stored(name)
        return stored.build(self._plugins) if isinstance(stored, StoredWeight) else stored

    def release(self, name: str) -> None:
        """Let go of the pages of a tensor that has been copied elsewhere."""
        owner = self._source if name in self._layers else self._residual
        owner.release(name)

    @property
    def nbytes(self) -> int:
        return self._source.nbytes + self._residual.nbytes

    def close(self) -> None:
        self._residual.close()
