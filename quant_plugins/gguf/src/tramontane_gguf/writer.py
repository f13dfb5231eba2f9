"""Writing GGUF files: tensor by tensor, aside, and put in place only when whole."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from attrs import frozen
from torch import Tensor

from tramontane.errors import ConfigError, ValidationError
from tramontane.loading.stored import StoredModel
from tramontane.protocols.pipeline import Progress
from tramontane_gguf.blocks import GgmlWeight
from tramontane_gguf.checkpoint import GgufCheckpoint
from tramontane_gguf.export_check import check_sayable
from tramontane_gguf.export_metadata import rope_tensors, settings
from tramontane_gguf.export_names import Outgoing, attention_layers, family_for, outgoing
from tramontane_gguf.export_pooling import pooling
from tramontane_gguf.export_tokenizer import tokenizer_keys
from tramontane_gguf.mixes import FileType, ModelShape, file_type, tensor_type
from tramontane_gguf.quantizer import GgmlQuantizer
from tramontane_gguf.types import BY_NAME, GgmlType

_QUANTIZATION_VERSION = 2
_U32 = 2**32
_WEIGHTED = ("Q2_K_S",)


@frozen
class _Contents:
    """A file before it is written: its architecture, keys and tensors."""

    architecture: str
    keys: dict[str, Any]
    tensors: list[Outgoing]


def write_model(
    model: StoredModel,
    path: Path,
    type_name: str,
    *,
    importance: Mapping[str, Tensor] | None = None,
    on_progress: Progress | None = None,
) -> None:
    """Write ``model`` to a GGUF file that llama.cpp loads.

    Args:
        model: an opened model; a GGUF file keeps its own metadata.
        path: the file; replaced only once the new one is whole.
        type_name: a file type, e.g. ``"Q4_K_M"``.
        importance: GGUF name without ``.weight`` → importance of columns.
        on_progress: told after each tensor.

    Raises:
        ValidationError: no such file type, or one that takes an importance matrix.
        UnsupportedError, ConfigError: a model or a tokenizer that GGUF has no form for.
    """
    kind = file_type(type_name)
    if kind.name in _WEIGHTED and not importance:
        raise ValidationError(
            f"{kind.name} needs an importance matrix (--imatrix): without one its errors are too "
            f"large to use"
        )
    given = _contents(model)
    types = _types(given, kind, weighted=bool(importance))
    if importance and not any(t.name.removesuffix(".weight") in importance for t in given.tensors):
        raise ConfigError(
            f"the importance matrix knows no tensor of this model; it has "
            f"{', '.join(list(importance)[:4])} …: it belongs to another"
        )
    keys = given.keys | {
        "general.quantization_version": _QUANTIZATION_VERSION,
        "general.file_type": kind.number,
    }
    quantizer = GgmlQuantizer()
    total = sum(quantizer.packed_bytes(t.shape, types[t.name].name) or 0 for t in given.tensors)
    done = 0
    with aside(path) as part:
        writer = _opened(part, given.architecture, keys)
        try:
            for tensor in given.tensors:
                _announce(writer, tensor, types[tensor.name])
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for tensor in given.tensors:
                packed = _packed(tensor, types[tensor.name], importance or {}, quantizer)
                writer.write_tensor_data(packed)
                done += packed.nbytes
                if on_progress is not None:
                    on_progress(done, total, tensor.name)
        finally:
            writer.close()


def tensor_types(model: StoredModel, type_name: str, *, weighted: bool = False) -> dict[str, str]:
    """Name of each tensor of the file to be → ggml type, without writing it.

    Args:
        model, type_name: as for `write_model`, whose errors are raised here too.
        weighted: whether there is an importance matrix.
    """
    types = _types(_contents(model), file_type(type_name), weighted=weighted)
    return {name: kind.name for name, kind in types.items()}


def write_arrays(path: Path, metadata: Mapping[str, Any], arrays: Mapping[str, Tensor]) -> None:
    """Write a file that is no model: plain float32 tensors under their own names."""
    with aside(path) as part:
        writer = _opened(part, "", metadata)
        try:
            for name, array in arrays.items():
                writer.add_tensor(name, array.float().contiguous().numpy())
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """A file to write that becomes ``path`` when all went well, and vanishes when not."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _contents(model: StoredModel) -> _Contents:
    source = getattr(model.checkpoint, "inner", model.checkpoint)
    return _copied(source) if isinstance(source, GgufCheckpoint) else _converted(model)


def _converted(model: StoredModel) -> _Contents:
    """What becomes of a Hugging Face model."""
    family = family_for(model.config)
    vocab_size = int(model.config["vocab_size"])
    after, layers = pooling(model)
    own = settings(model.config, family) | after
    extra = rope_tensors(model.config) | layers
    tensors = [
        Outgoing(name=name, module=name, shape=tuple(t.shape), make=lambda t=t: t)  # type: ignore[misc]
        for name, t in extra.items()
    ]
    tensors += outgoing(model.checkpoint, model.config, family)
    check_sayable(model.config, family, own, names=[t.name for t in tensors], factors=extra)
    keys: dict[str, Any] = {
        "general.type": "model",
        "general.name": model.name,
        "general.size_label": _size_label(tensors, own.get("expert_count", 0)),
    }
    keys |= {f"{family.name}.{key}": value for key, value in own.items()}
    ggml = tokenizer_keys(model.tokenizer, model.directory, vocab_size, family.name)
    keys |= {f"tokenizer.ggml.{key}": value for key, value in ggml.items()}
    if model.chat_template is not None:
        keys["tokenizer.chat_template"] = model.chat_template
    return _Contents(family.name, keys, tensors)


def _size_label(tensors: Sequence[Outgoing], num_experts: int) -> str:
    """Parameters in a word, ``8x7B`` or ``656K``."""
    routed = sum(math.prod(t.shape) for t in tensors if "_exps." in t.name)
    total = sum(math.prod(t.shape) for t in tensors)
    each = routed // num_experts if num_experts else 0
    label: str = gguf.size_label(total, total - routed, each, num_experts)
    return label


def _copied(checkpoint: GgufCheckpoint) -> _Contents:
    """What another file holds; what changes its type is de-quantized when it is read."""
    keys = {k: v for k, v in checkpoint.metadata.items() if not k.startswith("split.")}
    tensors = [
        Outgoing(
            name=info.name,
            module=info.name.removesuffix(".weight"),
            shape=info.shape,
            make=read,
            stored=info.type,
        )
        for info, read in checkpoint.raw_tensors()
    ]
    return _Contents(str(keys.pop("general.architecture")), keys, tensors)


def _types(contents: _Contents, kind: FileType, *, weighted: bool) -> dict[str, GgmlType]:
    shape = _shape_of(contents, weighted=weighted)
    return {t.name: _type_of(t, kind, shape) for t in contents.tensors}


def _shape_of(contents: _Contents, *, weighted: bool) -> ModelShape:
    p, keys = f"{contents.architecture}.", contents.keys

    def number(key: str, default: int) -> int:
        value = keys.get(p + key, default)
        # Of those that layers have one by one, the first layer's counts.
        return int(value[0]) if isinstance(value, (list, np.ndarray)) else int(value)

    names = [t.name for t in contents.tensors]
    heads = number("attention.head_count", 1)
    return ModelShape(
        family=contents.architecture,
        num_layers=number("block_count", 0),
        num_heads=heads,
        num_kv_heads=number("attention.head_count_kv", heads),
        num_experts=number("expert_count", 0),
        has_output="output.weight" in names,
        attention_layers=attention_layers(names),
        weighted=weighted,
    )


def _type_of(tensor: Outgoing, kind: FileType, shape: ModelShape) -> GgmlType:
    """MXFP4 stays, where another type would lose some of it and take no less."""
    chosen = tensor_type(tensor.name, tensor.shape, kind, shape) or BY_NAME["f32"]
    stored, mxfp4 = tensor.stored, BY_NAME["mxfp4"]
    return mxfp4 if stored is mxfp4 and _bits(mxfp4) <= _bits(chosen) else chosen


def _bits(kind: GgmlType) -> float:
    return 8 * kind.type_size / kind.block_size


def _packed(
    tensor: Outgoing, kind: GgmlType, importance: Mapping[str, Tensor], quantizer: GgmlQuantizer
) -> np.ndarray[Any, Any]:
    value = tensor.make()
    if isinstance(value, GgmlWeight):
        if value.type is kind:
            return value.blocks.contiguous().numpy()
        value = value.dequantize()
    given = importance.get(tensor.name.removesuffix(".weight"))
    if value.dim() < 2 or kind.block_size == 1:
        given = None
    if given is not None and value.dim() == 3 and given.numel() == value[:, 0].numel():
        given = given.view(value.shape[0], -1)
    packed = quantizer.quantize(value, kind.name, importance=given)
    return packed.blocks.contiguous().numpy()


def _announce(writer: gguf.GGUFWriter, tensor: Outgoing, kind: GgmlType) -> None:
    row = tensor.shape[-1] // kind.block_size * kind.type_size
    nbytes = row
    for size in tensor.shape[:-1]:
        nbytes *= size
    number = gguf.GGMLQuantizationType(kind.number)
    writer.add_tensor_info(
        tensor.name, (*tensor.shape[:-1], row), np.dtype(np.uint8), nbytes, raw_dtype=number
    )


def _opened(path: Path, architecture: str, keys: Mapping[str, Any]) -> gguf.GGUFWriter:
    """A writer that knows every key."""
    writer = gguf.GGUFWriter(path, architecture)
    if not architecture:
        writer.kv_data[0].pop("general.architecture", None)
    for key, value in keys.items():
        if isinstance(value, np.ndarray):
            is_bytes = value.dtype.itemsize == 1 and value.dtype.kind in "iu"
            value = value.tobytes() if is_bytes else value.tolist()
        if isinstance(value, bytes):
            writer.add_array(key, value)
        elif isinstance(value, (list, tuple)):
            writer.add_array(key, list(value))
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            add = writer.add_uint32 if 0 <= value < _U32 else writer.add_int64
            add(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_string(key, str(value))
    return writer
