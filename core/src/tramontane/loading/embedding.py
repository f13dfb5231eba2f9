"""Bringing up an embedding model: a language model without a head, and what makes vectors of it."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from attrs import evolve, frozen
from torch import nn

from tramontane.hooks import ArchitectureSpec
from tramontane.loading.device import choose_device
from tramontane.loading.device_map import DeviceMap
from tramontane.loading.dtype import choose_dtype, survey
from tramontane.loading.in_situ import in_situ_quantizer
from tramontane.loading.loader import Draft
from tramontane.loading.opening import (
    config_data,
    find_architecture,
    find_tokenizer,
    find_weights,
    open_checkpoint,
    open_weights,
    quantized_view,
)
from tramontane.loading.placement import Layout, check_types, place_layers
from tramontane.loading.plan import CacheRequest, plan_memory
from tramontane.loading.request import LoadRequest
from tramontane.loading.sentence_modules import (
    FILES,
    SentenceModules,
    longest_text,
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
    in_situ = None if request.in_situ is None else in_situ_quantizer(plugins)
    if in_situ is not None and request.in_situ is not None:
        in_situ.check(request.in_situ, device)
        if request.topology is not None:
            check_types(request.topology, in_situ, device)
    files = find_weights(request, beside=FILES)
    checkpoint = open_weights(request, files)
    try:
        data = config_data(files.directory, checkpoint)
        spec = find_architecture(data, request.arch, plugins, kind="embedding")
        checkpoint = quantized_view(checkpoint, data, plugins)
        architecture = plugins.resolve(spec)
        config = architecture.Config.from_dict(data)
        tokenizer = find_tokenizer(
            request, files.directory, checkpoint.tokenizer(), config.vocab_size, ends=True
        )
        inventory = survey(checkpoint)
        draft = Draft.of(architecture, config, checkpoint)
        layout = Layout(
            model=draft.model,
            arrangement=draft.arrangement,
            specs=architecture.cache_specs(config),
            topology=request.topology,
        )
        layout.check()
        packing = None
        if in_situ is not None and request.in_situ is not None:
            settings = evolve(request.in_situ, override=layout.override())
            packing = in_situ.plan(draft.model, draft.arrangement.aliases, settings, device)
            inventory = inventory.quantized(packing.elements, packing.packed_bytes)
        dtype = choose_dtype(request.dtype, inventory, device)
        request.reserve(inventory.bytes_as(dtype))
        device_map, parts = place_layers(
            layout,
            checkpoint,
            config=config,
            inventory=inventory,
            packing=packing,
            request=CacheRequest(),
            device_layers=request.device_layers,
            dtype=dtype,
            device=device,
        )
        if "pooling_type" in data:  # a GGUF file
            modules = modules_in(checkpoint, data, config.hidden_size, device=device_map.main)
        else:
            modules = read_modules(
                files.directory,
                config.hidden_size,
                open_checkpoint=partial(open_checkpoint, plugins=plugins),
                plugins=plugins,
                device=device_map.main,
            )
        plan_memory(  # nothing is kept between texts: only the weights have to fit
            inventory=inventory,
            specs=(),
            max_positions=config.max_position_embeddings,
            request=CacheRequest(),
            dtype=dtype,
            device=device_map.main,
            parts=parts,
        )
        model = draft.bind(
            checkpoint,
            dtype=dtype,
            device=device_map.main,
            device_map=device_map,
            in_situ=packing,
            steps=request.steps,
            on_progress=request.on_progress,
        )
    finally:
        checkpoint.close()
    return LoadedEmbedder(
        model=model,
        config=config,
        architecture=spec,
        modules=modules,
        tokenizer=tokenizer,
        dtype=dtype,
        device=device_map.main,
        device_map=device_map,
        weight_bytes=weight_bytes(model) + sum(weight_bytes(m) for m in modules.rest),
        max_seq_len=longest_text(files.directory, config.max_position_embeddings),
    )
