"""Quantizing while loading: what core tells the quantizer named ``isq``, and what it asks of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from attrs import frozen
from torch import Tensor, nn

from tramontane.protocols.quantizer import PackedWeight

if TYPE_CHECKING:
    from tramontane.hooks.manager import PluginManager

Override = Callable[[str], str | None]
"""Name of a parameter (``model.layers.3.mlp.up_proj.weight``) → the type pinned for it, or None."""


@frozen(kw_only=True)
class InSituSettings:
    """What a user says about quantizing while loading.

    Attributes:
        type_name: type of every weight that is packed, e.g. ``"Q4K"`` or ``"4"``; None packs only
            what ``override`` names.
        organization: ``"default"`` or ``"moqe"``; see `tramontane.IsqOrganization`.
        override: types of single weights, from a topology.
        importance: module name → mean squared activation of each input column, [in] float32 or
            [experts, in] for a stack; None for none.
        imatrix: file of such statistics.
    """

    type_name: str | None = None
    organization: str = "default"
    override: Override | None = None
    importance: Mapping[str, Tensor] | None = None
    imatrix: Path | None = None


class InSituPlan(Protocol):
    """What becomes of each weight of one model.

    Attributes:
        elements: how many numbers will be packed; shared ones once.
        packed_bytes: what they will take.
    """

    elements: int
    packed_bytes: int

    def packs(self, name: str) -> bool:
        """Whether parameter ``name`` will be packed; it is then best given as it is stored."""
        ...

    def nbytes(self, name: str) -> int | None:
        """Bytes of parameter ``name`` once packed; None when it stays as it is."""
        ...

    def pack(self, name: str, weight: Tensor | PackedWeight) -> Tensor | PackedWeight:
        """``weight`` as parameter ``name`` is to be kept: packed, or as it is. A weight that
        comes packed otherwise is de-quantized first."""
        ...


class Calibration(Protocol):
    """Statistics that a running model is collecting."""

    @property
    def rows(self) -> Mapping[str, int]:
        """Module name → activations seen."""
        ...

    def importance(self) -> Mapping[str, Tensor]:
        """What `InSituSettings.importance` takes."""
        ...

    def close(self) -> None:
        """Stop collecting."""
        ...


class InSituQuantizer(Protocol):
    """The target of the `QuantizerSpec` named ``isq``: the policy of in-situ quantization.

    Constructed as ``target(plugins)``.
    """

    def __init__(self, plugins: PluginManager) -> None: ...

    def check(self, settings: InSituSettings, device: torch.device) -> None:
        """Refuse settings that no model could be loaded with, before anything is read.

        Raises:
            ValidationError: an unknown type.
            MissingPluginError: a type whose format is not installed.
            CheckpointError: an importance matrix that cannot be read.
        """
        ...

    def collect(self, model: nn.Module) -> Calibration:
        """Begin to collect statistics of a model that is idle now."""
        ...

    def plan(
        self,
        model: nn.Module,
        aliases: Mapping[str, str],
        settings: InSituSettings,
        device: torch.device,
    ) -> InSituPlan:
        """Decide for every weight of ``model``.

        Args:
            model: plain or with packed modules, on any device, the meta device too.
            aliases: parameter name → the parameter whose tensor it shares.
            settings: what the user asked for.
            device: where the model runs.

        Raises:
            ValidationError: MoQE for a model without experts, an unknown type of an override.
        """
        ...
