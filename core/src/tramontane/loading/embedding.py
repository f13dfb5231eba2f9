"""Bringing up an embedding model: a language model without a head, and what makes vectors of it."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from attrs import frozen
from torch import nn

from tramontane.hooks import ArchitectureSpec
from tramontane.loading.device import choose_device
from tramontane.loading.device_map import DeviceMap
from tramontane.loading.draft import PlacedDraft, checked_quantizer
from tramontane.loading.opening import (
    find_architecture,
    find_tokenizer,
    open_checkpoint,
    opened,
)
from tramontane.loading.plan import CacheRequest, plan_memory
from tramontane.loading.request import LoadRequest
from tramontane.loading.sentence_modules import (
    FILES,
    SentenceModules,
    longest_text,
    modules_beside,
    modules_in,
    read_modules,
)
from tramontane.loading.weights import weight_bytes
from tramontane.text.tokenizer import Tokenizer


@frozen(kw_only=True)
class LoadedEmbedder:
    """An embedding model with its weights in place.

    Attributes:
        model: the architecture, kernels bound.
        config: its config object.
        architecture: the spec it was found by.
        modules: from hidden states to vectors.
        tokenizer: see `tramontane.text.Tokenizer`.
        dtype: of the language model's activations, and of weights that are not packed.
        device: where it runs; of a model on several devices, where a forward begins and ends.
        device_map: where each layer is.
        weight_bytes: memory of the weights, shared ones counted once.
        max_seq_len: tokens of the longest text.
    """

    model: nn.Module
    config: Any
    architecture: ArchitectureSpec
    modules: SentenceModules
    tokenizer: Tokenizer
    dtype: torch.dtype
    device: torch.device
    device_map: DeviceMap
    weight_bytes: int
    max_seq_len: int


def load_embedding(request: LoadRequest) -> LoadedEmbedder:
    """Bring up an embedding model.

    Raises:
        ModelLoadError: as `tramontane.loading.loader.load_text`; also where ``modules.json`` is
            absent or asks for what is not covered.
        ModelKindError: the model is no embedding model.
    """
    plugins = request.plugins
    device = choose_device()
    in_situ = checked_quantizer(request, device)
    with opened(request, beside=FILES) as found:
        checkpoint = found.checkpoint
        spec = find_architecture(found.config, request.arch, plugins, kind="embedding")
        architecture = plugins.resolve(spec)
        config = architecture.Config.from_dict(found.config)
        tokenizer = find_tokenizer(
            request, found.directory, found.tokenizer, config.vocab_size, ends=True
        )
        placed = PlacedDraft.of(
            request,
            architecture,
            config,
            checkpoint,
            in_situ=in_situ,
            device=device,
            beside=modules_beside(checkpoint),
        )
        main = placed.device_map.main
        if "pooling_type" in found.config:  # a GGUF file
            modules = modules_in(checkpoint, found.config, config.hidden_size, device=main)
        else:
            modules = read_modules(
                found.directory,
                config.hidden_size,
                open_checkpoint=partial(open_checkpoint, plugins=plugins),
                plugins=plugins,
                device=main,
            )
        plan_memory(  # nothing is kept between texts: only the weights have to fit
            inventory=placed.inventory,
            specs=(),
            max_positions=config.max_position_embeddings,
            request=CacheRequest(),
            dtype=placed.dtype,
            device=main,
            parts=placed.parts,
        )
        model = placed.bind(request, checkpoint)
        if request.save is not None:
            request.save(placed.bound(model, found, tokenizer))
    return LoadedEmbedder(
        model=model,
        config=config,
        architecture=spec,
        modules=modules,
        tokenizer=tokenizer,
        dtype=placed.dtype,
        device=main,
        device_map=placed.device_map,
        weight_bytes=weight_bytes(model) + sum(weight_bytes(m) for m in modules.rest),
        max_seq_len=longest_text(found.directory, config.max_position_embeddings),
    )
