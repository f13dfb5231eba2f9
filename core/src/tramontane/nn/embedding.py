"""The token embedding."""

from __future__ import annotations

from torch import nn


class Embedding(nn.Embedding):
    """``torch.nn.Embedding`` whose weight comes from a checkpoint.

    Its own initial values would be drawn on the meta device, for which torch first imports its
    compiler: seconds, for numbers that nobody sees.
    """

    def reset_parameters(self) -> None:
        """Leave the weight as it is."""
