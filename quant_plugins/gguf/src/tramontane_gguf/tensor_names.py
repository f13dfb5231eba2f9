"""Tensor names of GGUF and of Hugging Face checkpoints, and the order of q and k rows.

A stack of all experts, which Hugging Face stores expert by expert, carries the name of one
expert's tensor without its number: ``…block_sparse_moe.experts.w1.weight`` [E, out, in].
"""

from __future__ import annotations

import re

import torch
from attrs import frozen
from torch import Tensor

from tramontane_gguf.families import BARE, Family

_LAYER = re.compile(
    r"blk\.(\d+)\.((?:shortconv\.)?[a-z][a-z0-9_]*?)(?:\.(\d+))?(?:\.(weight|bias))?"
)
_GLOBAL = re.compile(r"([a-z][a-z0-9_]*)\.(weight|bias)")

CONSUMED = frozenset({"rope_freqs", "rope_factors_long", "rope_factors_short"})
"""Tensors that become part of the configuration."""


@frozen
class Role:
    """A GGUF tensor name taken apart: layer, role, expert number and suffix where it has them."""

    role: str
    layer: int | None = None
    expert: int | None = None
    suffix: str = ""


def parse(name: str) -> Role | None:
    """Take a GGUF name apart; None when it does not have the usual form."""
    if found := _LAYER.fullmatch(name):
        layer, role, expert, suffix = found.groups()
        return Role(role, int(layer), None if expert is None else int(expert), suffix or "")
    if found := _GLOBAL.fullmatch(name):
        return Role(found[1], suffix=found[2])
    return None


class TensorNames:
    """Both directions for one family, with or without experts.

    Args:
        family: the row of the architecture.
        moe: whether the model has experts.
    """

    def __init__(self, family: Family, *, moe: bool = False) -> None:
        self.family = family
        self._modules = family.role_names(moe)
        self._back: list[tuple[re.Pattern[str], str]] = []
        # A family's own roles come last in the table and are preferred.
        for role, module in reversed(self._modules.items()):
            self._back.append((self._pattern(role, module), role))

    def to_hf(self, name: str) -> str:
        """Hugging Face's name; the name itself where the family has none for it, so that the
        loader can report it or an architecture's rules can take it."""
        parsed = parse(name)
        if parsed is None or parsed.role not in self._modules:
            return name
        module = self._modules[parsed.role]
        if parsed.expert is not None:
            head, dot, leaf = module.rpartition(".")
            module = f"{head}{dot}{parsed.expert}.{leaf}"
        suffix = "" if parsed.role in BARE or not parsed.suffix else f".{parsed.suffix}"
        if parsed.layer is None:
            return f"{module}{suffix}"
        return f"model.layers.{parsed.layer}.{module}{suffix}"

    def to_gguf(self, name: str) -> str:
        """The GGUF name of a Hugging Face one; the name itself where there is none."""
        for pattern, role in self._back:
            if found := pattern.fullmatch(name):
                parts = found.groupdict()
                prefix = f"blk.{parts['layer']}." if parts.get("layer") is not None else ""
                expert = f".{parts['expert']}" if parts.get("expert") is not None else ""
                suffix = BARE[role] if role in BARE else f".{parts['suffix']}"
                return f"{prefix}{role}{expert}{suffix}"
        return name

    @staticmethod
    def _pattern(role: str, module: str) -> re.Pattern[str]:
        head, _, leaf = module.rpartition(".")
        if role in ("ffn_gate", "ffn_up", "ffn_down") and head.endswith(".experts"):
            module = f"{re.escape(head)}\\.(?P<expert>\\d+)\\.{re.escape(leaf)}"
        else:
            module = re.escape(module)
        suffix = "" if role in BARE else r"\.(?P<suffix>weight|bias)"
        in_layer = role not in ("token_embd", "token_embd_norm", "output_norm", "output")
        layer = r"model\.layers\.(?P<layer>\d+)\." if in_layer else ""
        return re.compile(f"{layer}{module}{suffix}")


def half_rotation_order(num_rows: int, num_heads: int) -> Tensor:
    """Row order that turns adjacent-pair rotation into half rotation, [num_rows] int64.

    The converter stored head rows as (0, d/2, 1, d/2 + 1, …); ``weight[order]`` has them as
    (0, 1, …, d - 1) again. `adjacent_pair_order` is the inverse.
    """
    return torch.arange(num_rows).view(num_heads, -1, 2).transpose(1, 2).reshape(-1)


def adjacent_pair_order(num_rows: int, num_heads: int) -> Tensor:
    """Row order that a converter applies: the inverse of `half_rotation_order`."""
    return torch.arange(num_rows).view(num_heads, 2, -1).transpose(1, 2).reshape(-1)
