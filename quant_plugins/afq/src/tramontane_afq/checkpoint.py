"""An MLX checkpoint whose affine weights come packed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from tramontane.errors import CheckpointError, ConfigError
from tramontane.protocols import Checkpoint, CheckpointView, PackedWeight
from tramontane_afq.words import affine_from_words

BITS = (2, 3, 4, 5, 6, 8)


class MlxCheckpoint(CheckpointView):
    """``X.weight``, ``X.scales`` and ``X.biases`` of the checkpoint below are one weight
    ``X.weight``.

    Args:
        inner: the checkpoint as stored.
        settings: ``bits`` and ``group_size`` of every weight, and by module name those of some.

    Raises:
        ConfigError: bits or a mode that are not covered.
        CheckpointError: one of the parts is missing.
    """

    def __init__(self, inner: Checkpoint, settings: Mapping[str, Any]) -> None:
        super().__init__(inner)
        stored = set(inner.names())
        self._bits: dict[str, int] = {}
        for name in stored:
            if not name.endswith(".scales"):
                continue
            module = name.removesuffix(".scales")
            for part in (f"{module}.weight", f"{module}.biases"):
                if part not in stored:
                    raise CheckpointError(
                        f"the checkpoint has {name!r} but not {part!r}; an affine weight needs both"
                    )
            self._bits[f"{module}.weight"] = _bits(module, settings)

    def names(self) -> Sequence[str]:
        modules = {name.removesuffix(".weight") for name in self._bits}
        parts = {f"{m}.{part}" for m in modules for part in ("scales", "biases")}
        return [name for name in self.inner.names() if name not in parts]

    def tensor(self, name: str) -> Tensor | PackedWeight:
        bits = self._bits.get(name)
        if bits is None:
            return self.inner.tensor(name)
        module = name.removesuffix(".weight")
        parts = [self.inner.tensor(f"{module}.{p}") for p in ("weight", "scales", "biases")]
        words, scales, biases = (p for p in parts if isinstance(p, Tensor))
        try:
            return affine_from_words(words, scales, biases, bits=bits)
        except ValueError as cause:
            raise CheckpointError(f"{name}: {cause}") from cause


def _bits(module: str, settings: Mapping[str, Any]) -> int:
    """Bits of one module's codes. Group sizes show in the shapes."""
    own = settings.get(module)
    chosen = {**settings, **own} if isinstance(own, Mapping) else settings
    mode, bits = chosen.get("mode", "affine"), chosen.get("bits")
    if mode != "affine":
        raise ConfigError(
            f"quantization.mode {mode!r} of {module} is not supported; only 'affine' is"
        )
    if isinstance(bits, bool) or bits not in BITS:
        raise ConfigError(
            f"quantization.bits of {module} is {bits!r}; it must be one of "
            f"{', '.join(map(str, BITS))}"
        )
    return int(bits)
