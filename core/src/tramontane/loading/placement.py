"""Where a model's layers go, by topology, ``num_device_layers`` and memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from attrs import frozen
from torch import nn

from tramontane.errors import TramontaneError
from tramontane.loading.device import accelerators, memory_of
from tramontane.loading.device_map import (
    Budget,
    DeviceMap,
    Needs,
    check_fit,
    count_layers,
    map_layers,
)
from tramontane.loading.dtype import Inventory
from tramontane.loading.layers import LayerNames, parameter_bytes, stored_names
from tramontane.loading.plan import CacheRequest, Part, smaller_formats, working_bytes
from tramontane.loading.rules import Arrangement
from tramontane.loading.topology import Topology
from tramontane.loading.weights import wanted_names
from tramontane.protocols import CacheSpec, Checkpoint, InSituPlan, InSituQuantizer, InSituSettings
from tramontane.protocols.in_situ import Override

log = logging.getLogger(__name__)

CPU = torch.device("cpu")
CHUNK = 1024
"""Tokens whose scores are in memory at a time."""


def check_types(topology: Topology, quantizer: InSituQuantizer, device: torch.device) -> None:
    """Refuse types that nothing installed knows, before anything is read.

    Raises:
        ConfigError: names file, line and type.
        MissingPluginError: a format knows it that is not installed.
    """
    for entry in topology.entries:
        try:
            quantizer.check(InSituSettings(type_name=entry.isq), device)
        except TramontaneError as cause:
            raise topology.fail(entry, f"isq: {cause}") from cause


@frozen(kw_only=True)
class Layout:
    """A model whose names are known and whose weights are not there yet.

    Attributes:
        model: on the meta device.
        arrangement: how its parameters come out of the checkpoint.
        specs: what each layer asks of the cache.
        topology: what a file says of single layers, or None.
    """

    model: nn.Module
    arrangement: Arrangement
    specs: Sequence[CacheSpec]
    topology: Topology | None = None

    def check(self) -> None:
        """Hold the topology against the model.

        Raises:
            ConfigError: it selects what the model does not have.
        """
        if self.topology is not None:
            self.topology.check(self._names(), self._layers().index, self._origins)

    def override(self) -> Override | None:
        """Types of single weights; None where the topology says of none."""
        if self.topology is None or not self.topology.pins_types:
            return None
        return self.topology.override(self._layers().index, self._origins)

    def pinned_devices(self, default: torch.device) -> Mapping[int, torch.device]:
        """Layers that the topology places.

        Args:
            default: the accelerator of this process, or the CPU.

        Raises:
            ConfigError: this machine has no such device.
        """
        if self.topology is None or not self.topology.pins_devices:
            return {}
        here = [*dict.fromkeys((default, *accelerators(), CPU))]
        if torch.backends.mps.is_available():
            here.append(torch.device("mps", 0))
        for entry in self.topology.entries:
            if entry.device is not None and entry.device not in here:
                raise self.topology.fail(
                    entry,
                    f"this machine has no {entry.device}; it has {', '.join(map(str, here))}. "
                    f"Name one of these, or remove device to have layers placed automatically",
                )
        return self.topology.layer_devices(self._names(), self._layers().index, self._origins)

    def sizes(
        self, checkpoint: Checkpoint, dtype: torch.dtype, packing: InSituPlan | None
    ) -> tuple[tuple[int, ...], int]:
        """Bytes of each layer's weights, and of those outside the layers."""
        layers = self._layers()
        inside, outside = [0] * len(self.specs), 0
        sizes = parameter_bytes(self.model, self.arrangement, checkpoint, dtype, packing)
        for name, nbytes in sizes.items():
            index = layers.index(name)
            if index is None:
                outside += nbytes
            else:
                inside[index] += nbytes
        return tuple(inside), outside

    def _layers(self) -> LayerNames:
        return LayerNames.of(self.model, len(self.specs))

    def _names(self) -> list[str]:
        aliases = self.arrangement.aliases
        return [name for name in wanted_names(self.model) if name not in aliases]

    def _origins(self, name: str) -> list[str]:
        recipe = self.arrangement.recipes.get(self.arrangement.aliases.get(name, name))
        return [] if recipe is None else stored_names(recipe)


def place_layers(
    layout: Layout,
    checkpoint: Checkpoint,
    *,
    config: Any,
    inventory: Inventory,
    packing: InSituPlan | None,
    request: CacheRequest,
    device_layers: Sequence[tuple[int, int]] | None,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[DeviceMap, list[Part] | None]:
    """Decide where each layer goes, and tell the user where they do not all go to one accelerator.

    Args:
        config: of the model.
        inventory: of its weights, for advice.
        packing: what in-situ quantization makes of them.
        request: the cache that there must be room for.
        device_layers: ``num_device_layers``; counts before memory. A topology counts before both.
        dtype: of activations and plain weights.
        device: the accelerator of this process, or the CPU.

    Returns:
        The map; and what each device holds, None where there is only one.

    Raises:
        ConfigError: a device that this machine does not have.
        MemoryPlanError: no placement fits, or not the one that was asked for.
    """
    count = len(layout.specs)
    pinned = layout.pinned_devices(device)
    present = accelerators()
    if not present and not pinned and device_layers is None:
        return DeviceMap.single(device, count), None
    rooms = {place: memory_of(place) for place in dict.fromkeys((*present, device, CPU))}
    rooms |= {place: memory_of(place) for place in pinned.values() if place not in rooms}
    budgets = [
        Budget(place, max(room.available - working_bytes(room, inventory.largest_bytes), 0))
        for place, room in sorted(rooms.items(), key=lambda item: item[0] == CPU)
    ]
    layers, fixed = layout.sizes(checkpoint, dtype, packing)
    needs = Needs(
        layers=layers,
        caches=_cache_bytes(layout.specs, config, request, dtype),
        fixed=fixed,
        activations=_activation_bytes(config, request, dtype),
    )
    advice = smaller_formats(inventory, dtype, sum(budget.nbytes for budget in budgets))
    if device_layers is not None:
        found, asked_by = count_layers(device_layers, count, present, CPU), "num_device_layers"
    elif pinned:
        found, asked_by = DeviceMap.single(device, count), f"topology {layout.topology.path}"  # type: ignore[union-attr]
    else:
        found, asked_by = map_layers(needs, budgets, advice=advice), ""
    found = found.with_layers(pinned)
    if asked_by:
        check_fit(found, needs, budgets, asked_by=asked_by, advice=advice)
    _tell(found, needs, by_memory=not asked_by)
    if not found.is_split:
        return found, None
    parts = [
        Part(
            device=place,
            room=rooms[place],
            weight_bytes=found.weights_on(place, needs),
            specs=[layout.specs[i] for i in found.layers_on(place)],
        )
        for place in found.devices
    ]
    return found, parts


def device_of(model: nn.Module, device_map: DeviceMap) -> Callable[[str], torch.device]:
    """What says, by a module's name, where its weights go."""
    names = LayerNames.of(model, len(device_map.layers))

    def place(module: str) -> torch.device:
        index = names.index(f"{module}.")
        return device_map.main if index is None else device_map.layers[index]

    return place


def elsewhere(model: nn.Module, device_map: DeviceMap) -> dict[nn.Module, torch.device]:
    """The layers that are not on the main device, with where they are."""
    if not device_map.is_split:
        return {}
    layers = LayerNames.of(model, len(device_map.layers)).modules(model)
    placed = zip(layers, device_map.layers, strict=True)
    return {layer: device for layer, device in placed if device != device_map.main}


def _cache_bytes(
    specs: Sequence[CacheSpec], config: Any, request: CacheRequest, dtype: torch.dtype
) -> tuple[int, ...]:
    """The least cache of each layer: what the user asked for, else the planned sequences."""
    cache_dtype = request.dtype or dtype
    each = [spec.bytes_per_token(cache_dtype) for spec in specs]
    states = [spec.bytes_per_seq(cache_dtype) * request.max_seqs for spec in specs]
    planned = min(request.planned_seq_len, config.max_position_embeddings)
    tokens = planned * request.planned_batch_size
    if request.context_len is not None:
        tokens = request.context_len
    elif request.cache_fraction is None and request.cache_bytes is not None:
        tokens = request.cache_bytes // max(sum(each), 1)
    tokens = -(-tokens // request.block_size) * request.block_size
    return tuple(nbytes * tokens + state for nbytes, state in zip(each, states, strict=True))


def _activation_bytes(config: Any, request: CacheRequest, dtype: torch.dtype) -> int:
    """Scores of attention, the largest thing that a forward makes."""
    heads = getattr(config, "num_attention_heads", 1)
    rows = min(request.planned_seq_len, config.max_position_embeddings, CHUNK)
    return int(dtype.itemsize * request.planned_batch_size * heads * rows * rows)


def _tell(found: DeviceMap, needs: Needs, *, by_memory: bool) -> None:
    """Say where the layers go; loudly where the CPU has to take what does not fit elsewhere."""
    for line in found.describe(needs):
        log.info("device map: %s", line)
    on_cpu = found.layers_on(CPU)
    if by_memory and on_cpu:
        log.warning(
            "%d of %d layers (%d to %d) do not fit on the accelerators and run on the CPU, which "
            "is slow. A smaller type (in_situ_quant), a shorter max_seq_len in auto_map_params or "
            "more free memory brings them back",
            len(on_cpu), len(found.layers), on_cpu[0], on_cpu[-1],
        )  # fmt: skip
