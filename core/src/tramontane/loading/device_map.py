"""Which layers go to which device, by sizes alone: nothing here looks at a machine.

Layers are placed in order. A device takes as many of the next ones as fit, then the device after
it goes on, the CPU last. What lies outside the layers (embedding, final norm, head) is on the
*main* device, where a forward begins and ends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Self

import torch
from attrs import evolve, frozen

from tramontane.errors import ConfigError, MemoryPlanError


@frozen(kw_only=True)
class Needs:
    """What a model takes, in bytes.

    Attributes:
        layers: weights of each layer.
        caches: cache of each layer, for the tokens and sequences that are planned.
        fixed: weights outside the layers.
        activations: working memory of a forward, on every device that takes part.
    """

    layers: tuple[int, ...]
    caches: tuple[int, ...]
    fixed: int = 0
    activations: int = 0

    @property
    def total(self) -> int:
        """All of it on one device."""
        return self.fixed + self.activations + sum(self.layers) + sum(self.caches)


@frozen
class Budget:
    """A device, and the bytes that a model may take of it."""

    device: torch.device
    nbytes: int


@frozen
class DeviceMap:
    """Where a model is.

    Attributes:
        main: where everything outside the layers is.
        layers: where each layer is.
    """

    main: torch.device
    layers: tuple[torch.device, ...]

    @classmethod
    def single(cls, device: torch.device, num_layers: int) -> Self:
        """Everything on one device."""
        return cls(device, (device,) * num_layers)

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """Those in use, the main one first."""
        return tuple(dict.fromkeys((self.main, *self.layers)))

    @property
    def is_split(self) -> bool:
        """Whether there is more than one."""
        return len(self.devices) > 1

    @property
    def counts(self) -> dict[str, int]:
        """Number of layers on each device in use."""
        return {str(device): len(self.layers_on(device)) for device in self.devices}

    def layers_on(self, device: torch.device) -> list[int]:
        """Indices of the layers that are there."""
        return [i for i, where in enumerate(self.layers) if where == device]

    def weights_on(self, device: torch.device, needs: Needs) -> int:
        """Bytes of weights on ``device``."""
        layers = sum(needs.layers[i] for i in self.layers_on(device))
        return layers + (needs.fixed if device == self.main else 0)

    def bytes_on(self, device: torch.device, needs: Needs) -> int:
        """What the model takes of ``device``."""
        here = self.layers_on(device)
        used = self.weights_on(device, needs) + sum(needs.caches[i] for i in here)
        return used + (needs.activations if here or device == self.main else 0)

    def with_layers(self, changed: Mapping[int, torch.device]) -> Self:
        """The same with some layers elsewhere."""
        layers = tuple(changed.get(i, device) for i, device in enumerate(self.layers))
        return evolve(self, layers=layers)

    def describe(self, needs: Needs) -> list[str]:
        """A line for each run of layers on one device: ``layers 0 to 15: cuda:0 (3.2 GiB)``."""
        lines, start = [], 0
        for device, group in groupby(self.layers):
            stop = start + len(list(group))
            size = sum(needs.layers[start:stop]) + sum(needs.caches[start:stop])
            many = f"layers {start} to {stop - 1}" if stop > start + 1 else f"layer {start}"
            lines.append(f"{many}: {device} ({gib(size)})")
            start = stop
        return [*lines, f"the rest: {self.main} ({gib(needs.fixed)})"]


def map_layers(needs: Needs, budgets: Sequence[Budget], *, advice: str = "") -> DeviceMap:
    """Place a model.

    One accelerator for all of it is best, then the placement with the fewest bytes of weights on
    the CPU. The main device is the first accelerator that leaves it at that; the CPU where none
    holds what lies outside the layers. If any placement in this order of devices fits, one is
    found.

    Args:
        needs: what the model takes.
        budgets: devices in order of preference, each once; the CPU last.
        advice: what would fit, for the error.

    Raises:
        MemoryPlanError: no placement fits; says what is lacking where.
    """
    whole = next((b for b in budgets[:-1] if needs.total <= b.nbytes), None)
    if whole is not None:
        return DeviceMap.single(whole.device, len(needs.layers))
    cpu = budgets[-1].device
    placed = [
        DeviceMap(main.device, layers)
        for main in budgets
        if (layers := _fill(needs, budgets, main.device)) is not None
    ]
    if not placed:
        raise _nothing_fits(needs, budgets, advice)
    return min(placed, key=lambda found: (found.main == cpu, found.weights_on(cpu, needs)))


def count_layers(
    counts: Sequence[tuple[int, int]],
    num_layers: int,
    accelerators: Sequence[torch.device],
    cpu: torch.device,
) -> DeviceMap:
    """The placement that ``num_device_layers`` asks for.

    Args:
        counts: (index of an accelerator, layers there), in the order of the layers. Layers left
            over go to the CPU; counts past the last layer are cut.
        num_layers: of the model.
        accelerators, cpu: devices of this machine.

    Raises:
        ConfigError: there is no such accelerator.
    """
    layers: list[torch.device] = []
    for index, count in counts:
        if not count:
            continue
        if index >= len(accelerators):
            there = ", ".join(map(str, accelerators)) or "none"
            raise ConfigError(
                f"num_device_layers puts {count} layers on accelerator {index}; this machine has "
                f"{len(accelerators)} ({there}). Name one of these, or leave num_device_layers out "
                f"to have layers placed automatically"
            )
        layers += [accelerators[index]] * min(count, num_layers - len(layers))
    layers += [cpu] * (num_layers - len(layers))
    used = [accelerators[index] for index, count in counts if count]
    return DeviceMap(used[0] if used else cpu, tuple(layers))


def check_fit(
    device_map: DeviceMap, needs: Needs, budgets: Sequence[Budget], *, asked_by: str, advice: str
) -> None:
    """Refuse a placement that a user asked for and memory does not allow.

    Raises:
        MemoryPlanError: names the device and how many of its layers would fit.
    """
    for budget in budgets:
        need = device_map.bytes_on(budget.device, needs)
        if need <= budget.nbytes:
            continue
        here = device_map.layers_on(budget.device)
        spent = need - sum(needs.layers[i] + needs.caches[i] for i in here)
        possible = _count_fitting(needs, here, budget.nbytes - spent)
        raise MemoryPlanError(
            f"{asked_by} puts {len(here)} layers on {budget.device}, which take {gib(need)} with "
            f"their cache and working memory; {gib(budget.nbytes)} may be taken there, enough for "
            f"{possible} layers. Put fewer there{', or ' if advice else ''}{advice}"
        )


def _fill(
    needs: Needs, budgets: Sequence[Budget], main: torch.device
) -> tuple[torch.device, ...] | None:
    """Devices of the layers with this main device; None where they do not fit."""
    layers: list[torch.device] = []
    for budget in budgets:
        left = budget.nbytes - needs.activations
        if budget.device == main:
            left -= needs.fixed
            if left < 0:
                return None
        rest = range(len(layers), len(needs.layers))
        layers += [budget.device] * _count_fitting(needs, rest, left)
    return tuple(layers) if len(layers) == len(needs.layers) else None


def _count_fitting(needs: Needs, layers: Sequence[int], nbytes: int) -> int:
    """How many of ``layers``, from the first on, ``nbytes`` hold."""
    for count, index in enumerate(layers):
        nbytes -= needs.layers[index] + needs.caches[index]
        if nbytes < 0:
            return count
    return len(layers)


def _nothing_fits(needs: Needs, budgets: Sequence[Budget], advice: str) -> MemoryPlanError:
    there = ", ".join(f"{budget.device} {gib(budget.nbytes)}" for budget in budgets)
    weights = needs.fixed + sum(needs.layers)
    lacking = needs.total - sum(budget.nbytes for budget in budgets)
    why = (
        f"{gib(lacking)} are lacking"
        if lacking > 0
        else "together that is enough, but no placement of whole layers in order fits"
    )
    return MemoryPlanError(
        f"weights of {gib(weights)}, a cache of {gib(sum(needs.caches))} and working memory fit on "
        f"no placement of the {len(needs.layers)} layers; a model may take: {there}; {why}. "
        f"What would help: {advice or 'a smaller model, or freeing memory'}"
    )


def gib(nbytes: int) -> str:
    """Bytes for people: ``1.50 GiB``."""
    return f"{nbytes / 2**30:.2f} GiB" if nbytes >= 10 << 20 else f"{nbytes / 2**20:.2f} MiB"
