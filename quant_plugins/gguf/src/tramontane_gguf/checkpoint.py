"""Opening GGUF files as a `tramontane.protocols.Checkpoint`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen
from torch import Tensor

from tramontane.errors import CheckpointError
from tramontane.protocols import Checkpoint, EmbeddedTokenizer, PackedWeight
from tramontane_gguf.blocks import GgmlWeight, plain
from tramontane_gguf.configuration import configuration
from tramontane_gguf.container import Container, TensorInfo, read
from tramontane_gguf.families import Family, family_of
from tramontane_gguf.latent import with_joined_heads
from tramontane_gguf.mamba import as_in_hugging_face
from tramontane_gguf.metadata import Metadata
from tramontane_gguf.tensor_names import CONSUMED, TensorNames, half_rotation_order, parse
from tramontane_gguf.tokenizer import embedded_tokenizer

_SHARD = re.compile(r"(?P<stem>.*)-(?P<no>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)
_FACTOR_LIMIT = 4096


class GgufFormat:
    """The ``.gguf`` checkpoint format."""

    def open(self, files: Sequence[Path]) -> Checkpoint:
        """Open one model: a single file, all shards in any order, or one shard whose siblings lie
        beside it.

        Raises:
            CheckpointError: a file is corrupt, or the shards do not belong together.
        """
        if not files:
            raise CheckpointError("no GGUF file was given")
        paths = list(dict.fromkeys(Path(file) for file in files))
        containers = [read(path) for path in _with_siblings(paths)]
        names = [name for container in containers for name in container.tensors]
        return with_joined_heads(GgufCheckpoint(_in_order(containers)), names)

    def write(self, model: Any, path: Path, type_name: str, **options: Any) -> None:
        """Write a model; see `tramontane_gguf.writer.write_model`."""
        from tramontane_gguf.writer import write_model

        write_model(model, path, type_name, **options)

    def read_arrays(self, path: Path) -> tuple[Mapping[str, Any], dict[str, Tensor]]:
        """Metadata and tensors of a file that is no model, such as an importance matrix.

        Raises:
            CheckpointError: it is corrupt, or tensors are packed.
        """
        container = read(path)
        arrays: dict[str, Tensor] = {}
        for name, info in container.tensors.items():
            if info.type.dtype is None:
                raise CheckpointError(f"{path}: tensor {name} is packed as {info.type.name}")
            arrays[name] = plain(container.bytes_of(info), info.type.dtype).view(info.shape)
        return container.metadata, arrays

    def write_arrays(
        self, path: Path, metadata: Mapping[str, Any], arrays: Mapping[str, Tensor]
    ) -> None:
        """Write such a file, float32 throughout."""
        from tramontane_gguf.writer import write_arrays

        write_arrays(path, metadata, arrays)


def _with_siblings(paths: list[Path]) -> list[Path]:
    """All shards of a set of which one was given; otherwise just what was given."""
    found = _SHARD.fullmatch(paths[0].name) if len(paths) == 1 else None
    if found is None:
        return paths
    count = int(found["count"])
    family = [
        paths[0].with_name(f"{found['stem']}-{no:05d}-of-{found['count']}.gguf")
        for no in range(1, count + 1)
    ]
    absent = [path.name for path in family if path != paths[0] and not path.exists()]
    if absent:
        raise CheckpointError(
            f"{paths[0]} is one of {count} shards; missing beside it: {', '.join(absent[:8])}"
        )
    return family if paths[0] in family else paths


def _in_order(containers: list[Container]) -> list[Container]:
    """Shards sorted by ``split.no``, checked to be one whole set."""
    first = containers[0]
    if len(containers) == 1 and Metadata(first.path, first.metadata).integer("split.count", 1) <= 1:
        return containers
    numbered: dict[int, Container] = {}
    for container in containers:
        meta = Metadata(container.path, container.metadata)
        count, number = meta.integer("split.count", 1), meta.integer("split.no", 0)
        if count != len(containers):
            raise CheckpointError(
                f"{container.path} belongs to a set of {count} (split.count), "
                f"but {len(containers)} files were given"
            )
        if not 0 <= number < count:
            raise CheckpointError(f"{container.path}: split.no is {number}, of {count}")
        if number in numbered:
            raise CheckpointError(
                f"{container.path} and {numbered[number].path} are both shard {number}"
            )
        numbered[number] = container
    ordered = [numbered[number] for number in range(len(containers))]
    meta = Metadata(ordered[0].path, ordered[0].metadata)
    total = sum(len(container.tensors) for container in ordered)
    promised = meta.integer("split.tensors.count", total)
    if promised != total:
        raise CheckpointError(
            f"the shards of {ordered[0].path} hold {total} tensors together, not the {promised} "
            f"of split.tensors.count"
        )
    return ordered


@frozen
class _Source:
    """Where a tensor lies, and which of its rows are meant when it is a part of a fused one."""

    container: Container
    info: TensorInfo
    start: int = 0
    stop: int | None = None
    heads: int = 0


class GgufCheckpoint:
    """One opened model. Tensors are views of the mapped files; the q and k rows of
    architectures that rotate adjacent pairs come in Hugging Face's order: packed ones as an order
    of rows beside the view, plain ones as a copy."""

    def __init__(self, containers: Sequence[Container]) -> None:
        self._containers = list(containers)
        first = self._containers[0]
        self._path = first.path
        self._meta = Metadata(first.path, first.metadata)
        self._infos: dict[str, tuple[Container, TensorInfo]] = {}
        for container in self._containers:
            for name, info in container.tensors.items():
                if name in self._infos:
                    raise CheckpointError(
                        f"tensor {name} is in both {self._infos[name][0].path} and {container.path}"
                    )
                self._infos[name] = (container, info)
        self._nbytes = sum(info.nbytes for _, info in self._infos.values())
        self._sources: dict[str, _Source] | None = None

    @property
    def family(self) -> Family:
        """The row of this file's architecture. Raises ConfigError when nobody knows it."""
        return family_of(self._meta.text("general.architecture"))

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Every key of the first file."""
        return self._meta.values

    def raw_tensors(self) -> list[tuple[TensorInfo, Callable[[], GgmlWeight]]]:
        """Each tensor as the file has it, nothing renamed, moved or rearranged."""

        def reader(container: Container, info: TensorInfo) -> Callable[[], GgmlWeight]:
            return lambda: GgmlWeight(container.bytes_of(info), info.type, info.shape, mapped=True)

        return [(info, reader(container, info)) for container, info in self._infos.values()]

    def config(self) -> dict[str, Any]:
        embedding = self._infos.get("token_embd.weight")
        if embedding is None:
            raise CheckpointError(
                f"{self._path} holds no token_embd.weight: it is a vocabulary or an adapter, "
                f"not a model"
            )
        return configuration(
            self._meta,
            self.family,
            names=list(self._infos),
            vocab_size=embedding[1].shape[0],
            factors=self._factors,
        )

    def tokenizer(self) -> EmbeddedTokenizer | None:
        return embedded_tokenizer(self._meta)

    def names(self) -> Sequence[str]:
        return list(self._named())

    def tensor(self, name: str) -> Tensor | PackedWeight:
        source = self._named().get(name)
        if source is None:
            raise CheckpointError(f"{self._path} holds no tensor for {name}")
        info = source.info
        data = source.container.bytes_of(info)
        if info.type.dtype is not None:
            return self._plain(name, source, data)
        if not info.shape:
            raise CheckpointError(f"{self._path}: tensor {info.name} is packed but a scalar")
        packed = GgmlWeight(data, info.type, info.shape, mapped=True)
        if source.stop is not None:
            packed = packed.rows(source.start, source.stop)
        if source.heads:
            packed = packed.select(half_rotation_order(packed.shape[0], source.heads))
        return packed

    @property
    def nbytes(self) -> int:
        return self._nbytes

    def close(self) -> None:
        self._containers = []
        self._infos = {}
        self._sources = {}

    def _plain(self, name: str, source: _Source, data: Tensor) -> Tensor:
        assert source.info.type.dtype is not None
        tensor = plain(data, source.info.type.dtype).view(source.info.shape)
        if source.stop is not None:
            tensor = tensor[source.start : source.stop]
        if source.heads:
            tensor = tensor[half_rotation_order(tensor.shape[0], source.heads)]
        if self.family.norm_plus_one and name.endswith("norm.weight"):
            tensor = tensor - 1
        role = parse(source.info.name)
        if role is not None:
            tensor = as_in_hugging_face(role.role, role.suffix, tensor, source.info.name)
        return tensor

    def _factors(self, name: str) -> list[float] | None:
        if name not in self._infos:
            return None
        container, info = self._infos[name]
        if info.type.dtype is None or len(info.shape) != 1 or info.shape[0] > _FACTOR_LIMIT:
            raise CheckpointError(f"{self._path}: tensor {name} is not a short list of numbers")
        values = plain(container.bytes_of(info), info.type.dtype).float()
        if not bool((values.isfinite() & (values > 0)).all()):
            raise CheckpointError(
                f"{self._path}: tensor {name} holds factors that are not positive"
            )
        return [float(value) for value in values]

    def _named(self) -> dict[str, _Source]:
        """Hugging Face name → where it lies. Made once, when first asked for."""
        if self._sources is None:
            family = self.family
            p = f"{family.name}."
            names = TensorNames(family, moe=self._meta.integer(p + "expert_count", 0) > 0)
            layers = self._meta.integer(p + "block_count", 0)
            layers -= self._meta.integer(p + "nextn_predict_layers", 0)
            found: dict[str, _Source] = {}
            for name, (container, info) in self._infos.items():
                parsed = parse(name)
                role = parsed.role if parsed else ""
                if role in CONSUMED or role == "attn_rot_embd":
                    continue
                # Layers past the last serve multi-token prediction, which is not run.
                if parsed and parsed.layer is not None and parsed.layer >= layers > 0:
                    continue
                if role == "attn_qkv" and family.split_qkv:
                    parts = self._split(names, name, _Source(container, info))
                else:
                    heads = self._rotated_heads(family, role, info)
                    parts = {names.to_hf(name): _Source(container, info, heads=heads)}
                for hf_name, source in parts.items():
                    if hf_name in found:
                        other = found[hf_name].info.name
                        raise CheckpointError(
                            f"{self._path}: {other} and {name} are both {hf_name}"
                        )
                    found[hf_name] = source
            self._sources = found
        return self._sources

    def _rotated_heads(self, family: Family, role: str, info: TensorInfo) -> int:
        """Heads of a tensor whose rows must be put back in order, else 0."""
        if not family.interleaved or role not in ("attn_q", "attn_k"):
            return 0
        p = f"{family.name}.attention."
        heads = self._meta.positive(p + "head_count")
        if role == "attn_k":
            heads = self._meta.kv_heads(f"{family.name}.", heads)
        if not info.shape or info.shape[0] % (2 * heads):
            raise CheckpointError(
                f"{self._path}: tensor {info.name} of shape {list(info.shape)} does not divide "
                f"into {heads} heads"
            )
        return heads

    def _split(self, names: TensorNames, name: str, fused: _Source) -> dict[str, _Source]:
        """The three parts of a fused q, k, v tensor."""
        p = f"{names.family.name}.attention."
        heads = self._meta.positive(p + "head_count")
        kv_heads = self._meta.positive(p + "head_count_kv", heads)
        rows = fused.info.shape[0] if fused.info.shape else 0
        if rows == 0 or rows % (heads + 2 * kv_heads):
            raise CheckpointError(
                f"{self._path}: tensor {name} of {rows} rows does not divide into {heads} query "
                f"and twice {kv_heads} key-value heads"
            )
        unit = rows // (heads + 2 * kv_heads)
        parts: dict[str, _Source] = {}
        start = 0
        for role, count in (("attn_q", heads), ("attn_k", kv_heads), ("attn_v", kv_heads)):
            stop = start + count * unit
            hf_name = names.to_hf(name.replace("attn_qkv", role))
            parts[hf_name] = _Source(fused.container, fused.info, start, stop)
            start = stop
        return parts
