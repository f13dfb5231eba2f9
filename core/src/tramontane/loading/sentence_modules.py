"""``modules.json`` of sentence-transformers: what follows the language model, and its weights.

Format: https://sbert.net/docs/sentence_transformer/usage/custom_models.html. Each entry names a
class and a folder with the settings, and for `Dense` the weights, of that module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn
from torch.nn import functional as F

from tramontane.errors import CheckpointError, ConfigError, SourceError
from tramontane.hooks import PluginManager
from tramontane.loading.rules import arrange
from tramontane.loading.weight_files import choose_weights
from tramontane.loading.weights import Binder, wanted_names
from tramontane.nn.config import check_type
from tramontane.nn.pooling import POOLING_MODES, Dense, Normalize, Pooling
from tramontane.protocols import Checkpoint
from tramontane.text.json_files import read_json, read_json_list

MODULES = "modules.json"
"""The file that lists what follows the model."""

FILES = ("*/model.safetensors", "*/pytorch_model.bin")
"""Weights in the folders of modules, as patterns for the hub."""

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "Identity": lambda x: x,
    "Tanh": torch.tanh,
    "ReLU": F.relu,
    "GELU": F.gelu,
    "SiLU": F.silu,
    "Sigmoid": torch.sigmoid,
}
"""Last part of ``activation_function`` → the function."""

OLD_POOLING_KEYS: Mapping[str, str] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""Switches of older files → mode, in the order in which several are put end to end."""

GGUF_POOLING: Mapping[int, str] = {1: "mean", 2: "cls", 3: "lasttoken"}
"""``pooling_type`` of GGUF files → mode."""

GGUF_DENSE = ("dense_2", "dense_3")
"""Tensors of the linear layers in GGUF files, in order."""

OpenCheckpoint = Callable[[Sequence[Path]], Checkpoint]


@frozen
class SentenceModules:
    """What follows the language model.

    Attributes:
        pooling: tokens to a vector.
        rest: applied to the vectors [B, width] in order.
        width: numbers of a finished vector.
    """

    pooling: Pooling
    rest: tuple[nn.Module, ...]
    width: int

    def __call__(self, hidden: Tensor, lengths: Sequence[int]) -> Tensor:
        """Packed hidden states [T, hidden] to vectors [B, width] float32."""
        x: Tensor = self.pooling(hidden, lengths)
        for module in self.rest:
            x = module(x)
        return x


def read_modules(
    directory: Path,
    hidden_size: int,
    *,
    open_checkpoint: OpenCheckpoint,
    plugins: PluginManager,
    device: torch.device,
) -> SentenceModules:
    """The modules of a model directory. They compute in float32: they are small, and their errors
    would be those of every vector.

    Args:
        hidden_size: width of the language model.

    Raises:
        SourceError: ``modules.json`` or a file it points to is absent or damaged.
        ConfigError: a module, or a setting of one, that is not covered.
        CheckpointError: weights that do not fit.
    """
    path = directory / MODULES
    entries = read_json_list(path)
    if entries is None:
        raise SourceError(
            f"{directory} has no modules.json, so nothing says how the vectors of its tokens "
            f"become one. If it is a chat model, load it with Which.Plain"
        )
    kinds = [_kind(entry, path) for entry in entries]
    if kinds[:2] != ["Transformer", "Pooling"] or _folder(entries[0], path):
        raise ConfigError(
            f"{path} lists {', '.join(kinds) or 'nothing'}; supported are Transformer with the "
            f"path '', Pooling, then any of Dense and Normalize"
        )
    _check_inputs(directory)
    pooling = _pooling(directory / _folder(entries[1], path), hidden_size)
    width = hidden_size * len(pooling.modes)
    rest: list[nn.Module] = []
    for entry, kind in zip(entries[2:], kinds[2:], strict=True):
        folder = directory / _folder(entry, path)
        if kind == "Dense":
            dense = _dense(folder, width, open_checkpoint, plugins, device)
            width = dense.linear.out_features
            rest.append(dense)
        elif kind == "Normalize":
            _check_names(read_json(folder / "config.json") or {}, folder)
            rest.append(Normalize())
        else:
            raise ConfigError(
                f"{path} lists a module of type {entry['type']!r}; supported are Transformer, "
                f"Pooling, Dense and Normalize"
            )
    return SentenceModules(pooling, tuple(rest), width)


def module_folders(directory: Path) -> list[str]:
    """Folders of the modules of an embedding model, relative to it; empty for other models.

    Raises:
        SourceError, ConfigError: ``modules.json`` is damaged.
    """
    path = directory / "modules.json"
    folders = []
    for entry in read_json_list(path) or []:
        _kind(entry, path)
        folders.append(_folder(entry, path))
    return [folder for folder in folders if folder]


def modules_beside(checkpoint: Checkpoint) -> list[str]:
    """Tensors of a GGUF file that are linear layers after the model."""
    return [name for name in checkpoint.names() if name.startswith(GGUF_DENSE)]


def modules_in(
    checkpoint: Checkpoint, data: Mapping[str, Any], hidden_size: int, *, device: torch.device
) -> SentenceModules:
    """The modules that a GGUF file holds: pooling as ``pooling_type`` says, linear layers where it
    has their tensors, and vectors of length one, as llama.cpp gives them unless told otherwise.

    Raises:
        ConfigError: the file pools in no way that gives a vector.
        CheckpointError: layers that do not fit one another.
    """
    mode = GGUF_POOLING.get(data.get("pooling_type", 0))
    if mode is None:
        raise ConfigError(
            f"pooling_type is {data.get('pooling_type')!r}, which gives no vector for a text; "
            f"supported are 1 (mean), 2 (first token) and 3 (last token). If it is a chat model, "
            f"load it with Which.GGUF"
        )
    width = hidden_size
    rest: list[nn.Module] = []
    for name in GGUF_DENSE:
        if f"{name}.weight" not in checkpoint.names():
            continue
        stored = checkpoint.tensor(f"{name}.weight")
        weight = stored if isinstance(stored, Tensor) else stored.dequantize()
        if weight.dim() != 2 or weight.shape[1] != width:
            raise CheckpointError(
                f"{name}.weight has shape {tuple(weight.shape)}; what comes before gives {width}"
            )
        dense = Dense(width, weight.shape[0], False, ACTIVATIONS["Identity"])
        dense.linear.weight = nn.Parameter(weight.to(device, torch.float32), requires_grad=False)
        width = weight.shape[0]
        rest.append(dense.eval())
    return SentenceModules(Pooling([mode]), (*rest, Normalize()), width)


def longest_text(directory: Path, max_positions: int) -> int:
    """Tokens a text may have: what the language model takes, or less where its files say so."""
    limits = [max_positions]
    for name, key in (
        ("sentence_bert_config.json", "max_seq_length"),
        ("tokenizer_config.json", "model_max_length"),
    ):
        limit = (read_json(directory / name) or {}).get(key)
        # Tokenizers without a limit state an absurd one, in files of some versions as a float.
        if isinstance(limit, int | float) and limit >= 1:
            limits.append(int(min(limit, max_positions)))
    return min(limits)


def _check_inputs(directory: Path) -> None:
    """Texts are encoded as they stand."""
    path = directory / "sentence_bert_config.json"
    data = read_json(path) or {}
    if "message" in (data.get("modality_config") or ()):
        raise ConfigError(
            f"{path}: modality_config has message, by which every text would be put into the chat "
            f"template; only text is supported"
        )
    if data.get("do_lower_case"):
        raise ConfigError(f"{path}: do_lower_case is true; only false is supported")


def _kind(entry: Any, path: Path) -> str:
    kind = entry.get("type") if isinstance(entry, Mapping) else None
    if not isinstance(kind, str):
        raise ConfigError(f"{path} must list modules with a type and a path, not {entry!r}")
    return kind.rpartition(".")[2]


def _folder(entry: Mapping[str, Any], path: Path) -> str:
    folder = entry.get("path", "")
    if not isinstance(folder, str) or PurePosixPath(folder).is_absolute() or ".." in folder:
        raise ConfigError(f"{path} names the path {folder!r}, which is no folder of the model")
    return folder


def _settings(folder: Path) -> dict[str, Any]:
    data = read_json(folder / "config.json")
    if data is None:
        raise SourceError(f"{folder} has no config.json, which modules.json promises")
    return data


def _check_names(data: Mapping[str, Any], folder: Path) -> None:
    """Modules pass one vector on; those that pick their input by name are others."""
    for key in ("module_input_name", "module_output_name"):
        if data.get(key) not in (None, "sentence_embedding"):
            raise ConfigError(f"{folder}: {key} is {data[key]!r}; supported is sentence_embedding")


def _pooling(folder: Path, hidden_size: int) -> Pooling:
    data = _settings(folder)
    if data.get("include_prompt", True) is not True:
        raise ConfigError(
            f"{folder}: include_prompt is {data['include_prompt']!r}; a prompt cannot be told from "
            f"the text here, so it must be true"
        )
    stated = data.get("embedding_dimension", data.get("word_embedding_dimension", hidden_size))
    if stated != hidden_size:
        raise ConfigError(
            f"{folder} pools vectors of {stated} numbers; those of the model have {hidden_size}"
        )
    modes = data.get("pooling_mode")
    if modes is None:
        modes = [mode for key, mode in OLD_POOLING_KEYS.items() if data.get(key)] or ["mean"]
    modes = [modes] if isinstance(modes, str) else modes
    if not isinstance(modes, list) or not modes or not all(m in POOLING_MODES for m in modes):
        raise ConfigError(
            f"{folder}: pooling_mode is {modes!r}; supported are {', '.join(POOLING_MODES)}"
        )
    return Pooling(modes)


def _dense(
    folder: Path,
    width: int,
    open_checkpoint: OpenCheckpoint,
    plugins: PluginManager,
    device: torch.device,
) -> Dense:
    data = _settings(folder)
    _check_names(data, folder)
    if data.get("use_residual"):
        raise ConfigError(f"{folder}: use_residual is true; only false is supported")
    name = data.get("activation_function", "torch.nn.modules.activation.Tanh")
    act = ACTIVATIONS.get(str(name).rpartition(".")[2])
    if act is None or not str(name).startswith("torch.nn."):
        raise ConfigError(
            f"{folder}: activation_function is {name!r}; supported are those of torch.nn: "
            f"{', '.join(ACTIVATIONS)}"
        )
    sizes = {key: data.get(key) for key in ("in_features", "out_features")}
    for key, size in sizes.items():
        if check_type(f"{folder}: {key}", size, "int") < 1:
            raise ConfigError(f"{folder}: {key} is {size}; a layer has at least 1")
    if sizes["in_features"] != width:
        raise ConfigError(
            f"{folder}: in_features is {sizes['in_features']}; what comes before gives {width}"
        )
    with torch.device("meta"):
        bias = check_type(f"{folder}: bias", data.get("bias", True), "bool")
        dense = Dense(width, int(sizes["out_features"] or 0), bias, act)
    checkpoint = open_checkpoint(choose_weights(folder, plugins))
    try:
        arrangement = arrange(checkpoint.names(), wanted_names(dense), (), None)
        Binder(dense, checkpoint, arrangement, dtype=torch.float32, device=device).run()
    except CheckpointError as cause:
        raise CheckpointError(f"{folder}: {cause}") from cause
    finally:
        checkpoint.close()
    return dense.eval()
