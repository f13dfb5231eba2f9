"""The road from a request for a model to the model, ready to run.

source → checkpoint format → config → architecture on the meta device → tokenizer and template →
memory plan → weights, one tensor at a time → kernels. What is cheap and may fail comes before what
is costly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from attrs import frozen
from torch import nn

from tramontane.hooks import ArchitectureSpec
from tramontane.loading.device import choose_device
from tramontane.loading.device_map import DeviceMap
from tramontane.loading.draft import Draft, PlacedDraft, checked_quantizer
from tramontane.loading.opening import find_architecture, find_template, find_tokenizer, opened
from tramontane.loading.plan import MemoryPlan, plan_memory
from tramontane.loading.request import BoundModel, LoadRequest
from tramontane.loading.weights import Step, weight_bytes
from tramontane.protocols import Checkpoint
from tramontane.protocols.in_situ import Override
from tramontane.protocols.pipeline import Progress
from tramontane.text.chat_template import ChatTemplate
from tramontane.text.generation_config import end_of_turn_ids, eos_ids, read_generation_config
from tramontane.text.tokenizer import Tokenizer

__all__ = ["BoundModel", "LoadRequest", "LoadedModel", "build", "load_text"]


@frozen(kw_only=True)
class LoadedModel:
    """A model with its weights in place, and what the engine needs to know of it.

    Attributes:
        model: the architecture, kernels bound.
        config: its config object.
        architecture: the spec it was found by.
        tokenizer: see `tramontane.text.Tokenizer`.
        chat_template: None when the model has none.
        eos_token_ids: every token that ends a turn.
        generation_config: content of ``generation_config.json``; empty when there is none.
        dtype: of activations, and of weights that are not packed.
        device: where it runs; of a model on several devices, where a forward begins and ends.
        device_map: where each layer is.
        override: types that a topology pins, for quantizing anew; None where there are none.
        weight_bytes: memory of the weights, shared ones counted once.
        max_seq_len: longest sequence that model and cache allow.
        plan: the cache to allocate.
    """

    model: nn.Module
    config: Any
    architecture: ArchitectureSpec
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    eos_token_ids: frozenset[int]
    generation_config: Mapping[str, Any]
    dtype: torch.dtype
    device: torch.device
    device_map: DeviceMap
    override: Override | None
    weight_bytes: int
    max_seq_len: int
    plan: MemoryPlan


def load_text(request: LoadRequest) -> LoadedModel:
    """Bring up a text model.

    Raises:
        SourceError: files not found, not permitted or not reachable.
        MissingPluginError: nothing installed knows the architecture or the file format.
        ConfigError: a setting that the architecture does not cover.
        CheckpointError: weights that are damaged or do not fit.
        MemoryPlanError: not enough memory; says what would fit.
        ModelKindError: the model is no text model.
    """
    plugins = request.plugins
    device = choose_device()
    in_situ = checked_quantizer(request, device)
    with opened(request) as found:
        checkpoint, embedded = found.checkpoint, found.tokenizer
        spec = find_architecture(found.config, request.arch, plugins, kind="text")
        architecture = plugins.resolve(spec)
        config = architecture.Config.from_dict(found.config)
        tokenizer = find_tokenizer(request, found.side, embedded, config.vocab_size)
        template = find_template(request, found, tokenizer)
        generation_config = read_generation_config(found.side)
        placed = PlacedDraft.of(
            request, architecture, config, checkpoint, in_situ=in_situ, device=device
        )
        plan = plan_memory(
            inventory=placed.inventory,
            specs=placed.layout.specs,
            max_positions=config.max_position_embeddings,
            request=placed.cache,
            dtype=placed.dtype,
            device=placed.device_map.main,
            left=placed.left,
            parts=placed.parts,
        )
        request.reserve(plan.weight_bytes + plan.cache_bytes)
        model = placed.bind(request, checkpoint)
        if request.save is not None:
            request.save(placed.bound(model, found, tokenizer))
    extra_eos = eos_ids(found.config) | frozenset(embedded.eos_token_ids if embedded else ())
    return LoadedModel(
        model=model,
        config=config,
        architecture=spec,
        tokenizer=tokenizer,
        chat_template=template,
        eos_token_ids=end_of_turn_ids(tokenizer, generation_config, *extra_eos),
        generation_config=generation_config,
        dtype=placed.dtype,
        device=placed.device_map.main,
        device_map=placed.device_map,
        override=placed.override,
        weight_bytes=weight_bytes(model),
        max_seq_len=plan.max_seq_len,
        plan=plan,
    )


def build(
    architecture: type[Any],
    config: Any,
    checkpoint: Checkpoint,
    *,
    dtype: torch.dtype,
    device: torch.device,
    steps: Sequence[Step] = (),
    on_progress: Progress | None = None,
) -> nn.Module:
    """The architecture with the checkpoint's weights in it, kernels bound, in this dtype exactly.

    Raises:
        CheckpointError: the weights do not fit.
    """
    draft = Draft.of(architecture, config, checkpoint)
    return draft.bind(
        checkpoint, dtype=dtype, device=device, exact=True, steps=steps, on_progress=on_progress
    )
