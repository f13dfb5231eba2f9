"""Names of in-situ types: what users write, what stands in for a type, what sensitive weights get.

A *canonical* name is lower case and without the size suffixes of GGUF file types: ``Q4_K_M`` and
``Q4K`` are both ``q4k``.
"""

from __future__ import annotations

import re

import torch
from attrs import frozen

from tramontane.errors import ValidationError
from tramontane.hooks import PluginManager
from tramontane.protocols import Quantizer

NUMBERS = {"2": "q2k", "3": "q3k", "4": "q4k", "5": "q5k", "6": "q6k", "8": "q8_0"}
NUMBERS_METAL = {"2": "afq2", "3": "afq3", "4": "afq4", "5": "q5k", "6": "afq6", "8": "afq8"}
"""What a bare number of bits stands for, by device."""

FALLBACKS = {
    "q2k": "q4_0", "q3k": "q4_0", "q4k": "q4_1", "q5k": "q5_0", "q6k": "q5_1", "q8k": "q8_1",
    "iq4_xs": "iq4_nl",
}  # fmt: skip
"""Type → the one that stands in where its blocks do not divide the rows."""

SENSITIVE = {
    "afq2": "afq6", "afq3": "afq6", "afq4": "afq6", "afq6": "afq8",
    "q2k": "q6k", "q3k": "q6k", "q4k": "q6k", "q4_0": "q6k", "q4_1": "q6k",
    "iq4_nl": "q6k", "iq4_xs": "q6k",
    "q5k": "q8_0", "q6k": "q8_0", "q8k": "q8_0", "q5_0": "q8_0", "q5_1": "q8_0", "q8_1": "q8_0",
}  # fmt: skip
"""Type → the one that weights get whose error reaches every logit: head and embedding."""

PROVIDERS = {
    "hqq": "hqq", "afq": "afq", "fp8": "fp8", "f8q8": "f8q8", "mxfp4": "mxfp4", "q": "gguf",
}  # fmt: skip
"""How names begin → the quantizer that would know them."""

_GGUF_SIZE = re.compile(r"q(\d)_?k(_(s|m|l|xl))?")


@frozen
class IsqType:
    """One type with the quantizer that packs it.

    Attributes:
        name: canonical.
        quantizer: an instance.
    """

    name: str
    quantizer: Quantizer


def canonical(name: str) -> str:
    """The canonical form of a type name, of whatever format."""
    lowered = name.strip().lower()
    found = _GGUF_SIZE.fullmatch(lowered)
    return f"q{found[1]}k" if found else lowered


class Types:
    """Finds types by name among the installed quantizers.

    Args:
        plugins: where they are registered.
        device: of the model; decides what a bare number means.
    """

    def __init__(self, plugins: PluginManager, device: torch.device) -> None:
        self._plugins = plugins
        self._numbers = NUMBERS_METAL if device.type == "mps" else NUMBERS
        self._found: dict[str, IsqType] = {}

    def get(self, asked: str) -> IsqType:
        """The type a user or a table calls ``asked``.

        Raises:
            ValidationError: nobody knows the name; lists the choices.
            MissingPluginError: a format knows it that is not installed; says what to install.
        """
        name = canonical(self._numbers.get(asked.strip(), asked))
        if name not in self._found:
            spec = self._plugins.find("quantizers", name)
            if spec is None or name not in {alias.lower() for alias in spec.isq_aliases}:
                raise self._unknown(asked, name)
            self._found[name] = IsqType(name, self._plugins.resolve(spec)())
        return self._found[name]

    def names(self) -> list[str]:
        """Every canonical name that is installed."""
        specs = self._plugins.specs("quantizers")
        return sorted({canonical(alias) for spec in specs for alias in spec.isq_aliases})

    def _unknown(self, asked: str, name: str) -> Exception:
        shape = re.fullmatch(r"q[2-8](k|_[01])|hqq[48]|afq[23468]|fp8|f8q8|mxfp4", name)
        provider = next((p for start, p in PROVIDERS.items() if name.startswith(start)), None)
        if shape and provider and self._plugins.find("quantizers", provider) is None:
            return self._plugins.missing("quantizers", provider)
        choices = ", ".join(n.upper() for n in self.names())
        return ValidationError(
            f"{asked!r} is no type to quantize to; choose one of {choices}, or a number of bits: "
            f"{', '.join(self._numbers)}"
        )
