"""The weights of a model that serves: quantized anew, with what its own requests teach."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import evolve
from torch import Tensor

from tramontane.errors import SourceError, ValidationError
from tramontane.hooks import PluginManager
from tramontane.loading.in_situ import in_situ_quantizer, requantize, shared_weights
from tramontane.loading.loader import LoadedModel
from tramontane.loading.placement import elsewhere
from tramontane.loading.topology import Topology
from tramontane.loading.weights import weight_bytes
from tramontane.protocols import Calibration, InSituSettings
from tramontane.protocols.pipeline import PipelineOptions

log = logging.getLogger(__name__)

CALIBRATION_CHUNK = 1024
"""Tokens of a text that statistics are collected from at a time."""


class LiveWeights:
    """Not for use while the engine runs; see `tramontane.models.ModelTable.exclusive`.

    Args:
        loaded: the model.
        plugins: where types are looked up.
    """

    def __init__(self, loaded: LoadedModel, plugins: PluginManager) -> None:
        self._model = loaded.model
        self._device = loaded.device
        self._dtype = loaded.dtype
        self._override = loaded.override
        self._elsewhere = elsewhere(loaded.model, loaded.device_map)
        self._plugins = plugins
        self._calibration: Calibration | None = None

    def requantize(self, settings: InSituSettings) -> int:
        """Pack every weight that in-situ quantization touches; a topology's types stay.

        Returns:
            Bytes of all weights afterwards.

        Raises:
            ValidationError: there is no such type.
            MissingPluginError: its format is not installed.
        """
        quantizer = in_situ_quantizer(self._plugins)
        settings = evolve(settings, override=self._override)
        aliases = shared_weights(self._model)
        plan = quantizer.plan(self._model, aliases, settings, self._device)
        requantize(
            self._model,
            plan,
            device=self._device,
            dtype=self._dtype,
            elsewhere=self._elsewhere,
        )
        return weight_bytes(self._model)

    def begin_calibration(self) -> None:
        """Watch what every linear reads.

        Raises:
            ValidationError: that is being done already.
        """
        if self._calibration is not None:
            raise ValidationError(
                "statistics are being collected already; apply_calibration ends that"
            )
        self._calibration = in_situ_quantizer(self._plugins).collect(self._model)

    def calibration_status(self) -> dict[str, Any]:
        """How much has been seen; callable at any time."""
        rows = {} if self._calibration is None else self._calibration.rows
        return {
            "active": self._calibration is not None,
            "rows": max(rows.values(), default=0),
            "modules": len(rows),
            "unseen": sum(not seen for seen in rows.values()),
        }

    def statistics(self) -> Mapping[str, Tensor]:
        """What has been seen so far: module name → importances; empty when nothing is watched."""
        return {} if self._calibration is None else self._calibration.importance()

    def apply_calibration(self, settings: InSituSettings) -> int:
        """Stop watching, and quantize by what was seen.

        Raises:
            ValidationError: nothing was seen, or there is no such type.
        """
        if self._calibration is None:
            raise ValidationError("no statistics are being collected; begin_calibration first")
        importance = self._calibration.importance()
        if not importance:
            raise ValidationError(
                "no statistics have been collected yet: send requests, then apply them"
            )
        in_situ_quantizer(self._plugins).check(settings, self._device)
        self._calibration.close()
        self._calibration = None
        return self.requantize(evolve(settings, importance=importance))


def calibration_text(path: Path) -> str:
    """Content of a calibration file.

    Raises:
        SourceError: it cannot be read, is no UTF-8 text, or is empty.
    """
    try:
        text = path.expanduser().read_text(encoding="utf-8")
    except OSError as cause:
        raise SourceError(f"calibration_file {path}: {cause.strerror}") from cause
    except UnicodeDecodeError as cause:
        raise SourceError(f"calibration_file {path} is no UTF-8 text") from cause
    if not text.strip():
        raise SourceError(f"calibration_file {path} holds no text")
    return text


def in_situ_settings(
    which: Any, options: PipelineOptions, topology: Topology | None = None
) -> InSituSettings | None:
    """What a ``Which`` variant and a runner's settings say about quantizing while loading.

    Raises:
        ValidationError: statistics for quantizing, without a type to quantize to.
    """
    imatrix = getattr(which, "imatrix", None)
    pins_types = topology is not None and topology.pins_types
    if which.uqff_files and (options.in_situ_quant is not None or pins_types):
        log.warning(
            "UQFF files are quantized already: in_situ_quant and the types of a topology are not "
            "used"
        )
        return None
    if options.in_situ_quant is None and not pins_types:
        for name in ("imatrix", "calibration_file"):
            if getattr(which, name, None):
                raise ValidationError(
                    f"{name} serves quantizing while loading: give in_situ_quant too, e.g. 'Q4K'"
                )
        return None
    organization = getattr(which, "organization", None)
    return InSituSettings(
        type_name=options.in_situ_quant,
        organization="default" if organization is None else organization.value,
        imatrix=None if imatrix is None else Path(imatrix),
    )
