"""A model between its configuration and its weights: laid out, packed on paper, placed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Self

import torch
from attrs import evolve, frozen
from torch import nn

from tramontane.loading.device_map import DeviceMap
from tramontane.loading.dtype import (
    Inventory,
    Narrow,
    asked_dtype,
    choose_cache_dtype,
    choose_dtype,
    survey,
)
from tramontane.loading.in_situ import in_situ_quantizer, report_slow
from tramontane.loading.layers import LayerNames
from tramontane.loading.opening import OpenModel
from tramontane.loading.placement import Layout, check_types, device_of, elsewhere, place_layers
from tramontane.loading.plan import CacheRequest, Part
from tramontane.loading.request import BoundModel, LoadRequest
from tramontane.loading.rules import Arrangement, arrange
from tramontane.loading.weights import Binder, Step, wanted_names
from tramontane.nn import bind_kernels, install_transfers
from tramontane.protocols import Checkpoint, InSituPlan, InSituQuantizer
from tramontane.protocols.in_situ import Override
from tramontane.protocols.pipeline import Progress
from tramontane.text.tokenizer import Tokenizer


@frozen
class Draft:
    """A model without weights, and which tensors of a checkpoint will make them.

    Attributes:
        model: every parameter on the meta device.
        arrangement: how each comes out of the checkpoint.
    """

    model: nn.Module
    arrangement: Arrangement

    @classmethod
    def of(cls, architecture: type[Any], config: Any, checkpoint: Checkpoint) -> Self:
        """Lay out the model and match its names with the checkpoint's.

        Raises:
            CheckpointError: they do not fit.
        """
        with torch.device("meta"):
            model: nn.Module = architecture(config)
        rules = getattr(architecture, "WEIGHTS", ())
        return cls(model, arrange(checkpoint.names(), wanted_names(model), rules, config))

    def bind(
        self,
        checkpoint: Checkpoint,
        *,
        dtype: torch.dtype,
        device: torch.device,
        device_map: DeviceMap | None = None,
        in_situ: InSituPlan | None = None,
        exact: bool = False,
        steps: Sequence[Step] = (),
        on_progress: Progress | None = None,
    ) -> nn.Module:
        """The model with its weights in place, kernels bound.

        Args:
            device_map: where its layers go; None for ``device``.
            exact: see `Binder`.

        Raises:
            CheckpointError: shapes or dtypes do not fit.
        """
        device_map = device_map or DeviceMap.single(device, 0)
        binder = Binder(
            self.model,
            checkpoint,
            self.arrangement,
            dtype=dtype,
            device=device,
            device_of=device_of(self.model, device_map) if device_map.is_split else None,
            in_situ=in_situ,
            exact=exact,
            steps=steps,
            on_progress=on_progress,
        )
        model = binder.run().eval()
        bind_kernels(model, device, dtype, elsewhere(model, device_map))
        if device_map.is_split:
            layers = LayerNames.of(model, len(device_map.layers)).modules(model)
            install_transfers(list(layers), device_map.layers, device_map.main)
        if in_situ is not None:
            report_slow(model, device)
        return model


@frozen(kw_only=True)
class PlacedDraft:
    """A draft whose types and places are settled; no weight is read yet.

    Attributes:
        draft: the model.
        layout: its layers.
        inventory: what its weights take once packed.
        packing: what in-situ quantization will do; None without it.
        override: types that a topology pins; None where there are none.
        dtype: of activations, and of weights that are not packed.
        cache: what the user says about the KV cache, its dtype settled.
        left: bytes that the budget leaves for it; None for no limit.
        device_map: where each layer goes.
        parts: what each device will hold, for the memory plan.
    """

    draft: Draft
    layout: Layout
    inventory: Inventory
    packing: InSituPlan | None
    override: Override | None
    dtype: torch.dtype
    cache: CacheRequest
    left: int | None
    device_map: DeviceMap
    parts: list[Part] | None

    @classmethod
    def of(
        cls,
        request: LoadRequest,
        architecture: type[Any],
        config: Any,
        checkpoint: Checkpoint,
        *,
        in_situ: InSituQuantizer | None,
        device: torch.device,
        beside: Iterable[str] = (),
    ) -> Self:
        """Settle types and places, and reserve the memory of the weights.

        Args:
            in_situ: see `checked_quantizer`.
            device: the accelerator of this process, or the CPU.
            beside: tensors of the checkpoint that are loaded although the model has no place for
                them.

        Raises:
            CheckpointError, ConfigError, MemoryPlanError: the model does not fit its checkpoint,
                its topology, or the devices.
        """
        draft = Draft.of(architecture, config, checkpoint)
        layout = Layout(
            model=draft.model,
            arrangement=draft.arrangement,
            specs=architecture.cache_specs(config),
            topology=request.topology,
        )
        layout.check()
        inventory = survey(checkpoint, draft.arrangement.stored.union(beside))
        packing, override = None, layout.override()
        if in_situ is not None and request.in_situ is not None:
            settings = evolve(request.in_situ, override=override)
            packing = in_situ.plan(draft.model, draft.arrangement.aliases, settings, device)
            inventory = inventory.quantized(packing.elements, packing.packed_bytes)
        dtype = choose_dtype(request.dtype, inventory, device)
        if packing is None:
            narrow = Narrow(checkpoint, draft.arrangement, dtype)
            inventory = evolve(inventory, kept=narrow.elements(draft.model, device))
        cache = request.cache
        if cache.dtype is None:
            chosen = choose_cache_dtype(request.dtype, inventory, dtype, device)
            cache = evolve(cache, dtype=chosen)
        left = request.reserve(inventory.bytes_as(dtype))
        device_map, parts = place_layers(
            layout,
            checkpoint,
            config=config,
            inventory=inventory,
            packing=packing,
            request=cache,
            device_layers=request.device_layers,
            dtype=dtype,
            device=device,
        )
        return cls(
            draft=draft,
            layout=layout,
            inventory=inventory,
            packing=packing,
            override=override,
            dtype=dtype,
            cache=cache,
            left=left,
            device_map=device_map,
            parts=parts,
        )

    def bind(self, request: LoadRequest, checkpoint: Checkpoint) -> nn.Module:
        """The model with its weights in place, kernels bound.

        Raises:
            CheckpointError: shapes or dtypes do not fit.
        """
        return self.draft.bind(
            checkpoint,
            dtype=self.dtype,
            device=self.device_map.main,
            device_map=self.device_map,
            in_situ=self.packing,
            exact=asked_dtype(request.dtype) is torch.float32,
            steps=request.steps,
            on_progress=request.on_progress,
        )

    def bound(self, model: nn.Module, files: OpenModel, tokenizer: Tokenizer) -> BoundModel:
        """``model``, which `bind` made, with its files, for whoever writes it."""
        return BoundModel(
            model=model,
            arrangement=self.draft.arrangement,
            checkpoint=files.checkpoint,
            config=files.config,
            directory=files.side,
            tokenizer=tokenizer,
        )


def checked_quantizer(request: LoadRequest, device: torch.device) -> InSituQuantizer | None:
    """The policy of in-situ quantization, asked first whether it knows the types; None where
    nothing is to be quantized.

    Raises:
        MissingPluginError: the policy, or a format, is not installed.
        ValidationError: nobody knows a type.
    """
    if request.in_situ is None:
        return None
    quantizer = in_situ_quantizer(request.plugins)
    quantizer.check(request.in_situ, device)
    if request.topology is not None:
        check_types(request.topology, quantizer, device)
    return quantizer
