"""Collects importances while a model runs: mean squares of what every linear reads, by column."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tramontane.nn import ExpertLinear, PackedExpertLinear, PackedLinear


class Collector:
    """Watches a model until it is closed. Begin and end it while the model is idle.

    Args:
        model: weights in place, plain or packed.
    """

    def __init__(self, model: nn.Module) -> None:
        self._sums: dict[str, Tensor] = {}
        self._rows: dict[str, Tensor] = {}
        self._undo: list[Callable[[], None]] = []
        for name, module in model.named_modules():
            if isinstance(module, ExpertLinear | PackedExpertLinear):
                self._watch_experts(name, module)
            elif isinstance(module, nn.Linear | PackedLinear):
                self._watch(name, module)

    @property
    def rows(self) -> Mapping[str, int]:
        """Module name → activations seen; for a stack, of all its experts together."""
        return {name: int(rows.sum()) for name, rows in self._rows.items()}

    def importance(self) -> dict[str, Tensor]:
        """Module name → mean squares: [in], or [experts, in] with zeros for experts that no token
        reached. Modules that saw nothing are left out."""
        return {
            name: sums / rows.clamp(min=1)[..., None]
            for name, sums in self._sums.items()
            if bool((rows := self._rows[name]).any())
        }

    def close(self) -> None:
        """Stop watching. Safe to call twice."""
        while self._undo:
            self._undo.pop()()

    def _watch(self, name: str, module: Any) -> None:
        self._sums[name] = torch.zeros(module.in_features)
        self._rows[name] = torch.zeros((), dtype=torch.int64)

        def see(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            self._add(self._sums[name], self._rows[name], arguments[0])

        self._undo.append(module.register_forward_pre_hook(see).remove)

    def _watch_experts(self, name: str, module: Any) -> None:
        count, width = module.num_experts, module.in_features
        self._sums[name] = torch.zeros(count, width)
        self._rows[name] = torch.zeros(count, dtype=torch.int64)

        def see(_: nn.Module, arguments: tuple[Tensor, int]) -> None:
            x, index = arguments
            self._add(self._sums[name][index], self._rows[name][index], x)

        self._undo.append(module.register_forward_pre_hook(see).remove)

    @staticmethod
    def _add(sums: Tensor, rows: Tensor, x: Tensor) -> None:
        flat = x.detach().reshape(-1, x.shape[-1]).float()
        sums += flat.square().sum(0).cpu()
        rows += flat.shape[0]
