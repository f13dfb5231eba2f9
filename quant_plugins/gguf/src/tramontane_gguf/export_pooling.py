"""What follows an embedding model, as a file says it: the reverse of core's ``modules_in``."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from tramontane.errors import ConfigError
from tramontane.hooks import plugin_manager
from tramontane.loading.opening import open_checkpoint
from tramontane.loading.sentence_modules import (
    GGUF_DENSE,
    GGUF_POOLING,
    MODULES,
    SentenceModules,
    read_modules,
)
from tramontane.loading.stored import StoredModel
from tramontane.nn.pooling import Dense, Normalize


def pooling(model: StoredModel) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Keys without the architecture's prefix, and tensors; none for a model that is continued.

    Raises:
        ConfigError: what follows the model cannot be said.
        SourceError: files that ``modules.json`` promises are absent.
    """
    if not (model.directory / MODULES).is_file():
        return {}, {}
    plugins = plugin_manager()
    modules = read_modules(
        model.directory,
        int(model.config["hidden_size"]),
        open_checkpoint=partial(open_checkpoint, plugins=plugins),
        plugins=plugins,
        device=torch.device("cpu"),
    )
    keys: dict[str, Any] = {"pooling_type": _type(modules)}
    tensors: dict[str, Tensor] = {}
    for name, layer in zip(GGUF_DENSE, _layers(modules), strict=False):
        keys[f"{name}_feat_in"] = layer.linear.in_features
        keys[f"{name}_feat_out"] = layer.linear.out_features
        tensors[f"{name}.weight"] = layer.linear.weight.detach()
    return keys, tensors


def _type(modules: SentenceModules) -> int:
    modes = list(modules.pooling.modes)
    for number, mode in GGUF_POOLING.items():
        if modes == [mode]:
            return number
    raise ConfigError(
        f"a GGUF file cannot say that tokens are pooled by {' and '.join(modes)}; only by one of "
        f"{', '.join(GGUF_POOLING.values())}"
    )


def _layers(modules: SentenceModules) -> list[Dense]:
    """The linear layers between pooling and the scaling to length one."""
    *layers, last = modules.rest or (None,)
    if not isinstance(last, Normalize):
        raise ConfigError(
            "a GGUF file cannot say that vectors keep their length; readers scale them to one, "
            "as a module Normalize at the end of modules.json does"
        )
    found = [layer for layer in layers if isinstance(layer, Dense)]
    plain = all(
        getattr(layer.linear, "bias", None) is None and _is_identity(layer) for layer in found
    )
    if len(found) != len(layers) or len(found) > len(GGUF_DENSE) or not plain:
        raise ConfigError(
            f"a GGUF file has room for {len(GGUF_DENSE)} layers of type Dense after the model, "
            f"without bias and activation; modules.json lists others"
        )
    return found


def _is_identity(layer: Dense) -> bool:
    probe = torch.tensor([-2.0, -0.5, 0.5, 2.0])
    return bool(torch.equal(layer.act(probe), probe))
