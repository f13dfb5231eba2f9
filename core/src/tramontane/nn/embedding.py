"""The token embedding."""

from __future__ import annotations

from torch import nn


class Embedding(nn.Embedding):
    """``torch.nn.Embedding`` that draws no initial values on the meta device, where there is
    nothing to draw them into: torch would import its compiler for it, which takes seconds."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()
