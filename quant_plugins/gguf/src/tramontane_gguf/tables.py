"""Look-up tables of the ggml block types, built when first needed and kept for each device.

The codebooks of the IQ types are those that the ``gguf`` package carries.
"""

from __future__ import annotations

from functools import cache

import gguf.quants
import torch
from torch import Tensor


class Table:
    """A constant tensor that is copied to each device once."""

    def __init__(self, values: Tensor) -> None:
        self._copies = {torch.device("cpu"): values}

    def on(self, device: torch.device) -> Tensor:
        found = self._copies.get(device)
        if found is None:
            found = self._copies[device] = self._copies[torch.device("cpu")].to(device)
        return found


FP4_VALUES = Table(torch.tensor([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12.0]))
"""E2M1 times two (OCP Microscaling Formats 1.0); scales are halved to match."""

IQ4_VALUES = Table(
    torch.tensor([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113.0])
)


@cache
def e8m0_half() -> Table:
    """Half of each E8M0 scale, 2^(code - 128); exact, subnormal ones included."""
    return Table(torch.ldexp(torch.ones(256, dtype=torch.float64), torch.arange(256) - 128).float())


@cache
def ue4m3_half() -> Table:
    """Half of each unsigned E4M3 scale; 0x7F, which would be NaN, is zero."""
    code = torch.arange(256)
    exponent, mantissa = (code >> 3) & 0xF, (code & 7).double()
    normal = torch.ldexp(1 + mantissa / 8, exponent - 7)
    value = torch.where(exponent == 0, torch.ldexp(mantissa, torch.tensor(-9)), normal) / 2
    value[0x7F] = 0.0
    return Table(value.float())


@cache
def grid(name: str) -> Table:
    """Codebook of an IQ type, [entries, 4 or 8] float32."""
    kind = getattr(gguf.quants, name.upper())
    kind.init_grid()
    return Table(torch.from_numpy(kind.grid.reshape(kind.grid_shape).copy()))


@cache
def sign_masks() -> Table:
    """Eight sign bits for each 7-bit code; the eighth makes their parity even, [128] uint8."""
    code = torch.arange(128)
    parity = sum(((code >> bit) & 1) for bit in range(7)) % 2
    return Table((code | (parity << 7)).to(torch.uint8))
