"""The self-expressive layer: each row as a combination of all others."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastdc.networks._shapes import TakesShapes
from fastdc.networks.heads import Head


class SelfExpression(TakesShapes, Head):
    """Coefficients of all rows over all rows. Clusters are found in them afterwards, by a spectral cut.

    Attributes
    ----------
    coefficients : nn.Parameter of shape (n_samples, n_samples)
        Row i says what makes up row i; its diagonal is zero. NaN until :meth:`start`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.coefficients = nn.Parameter(torch.full((1, 1), float("nan")))

    @torch.no_grad()
    def start(self, n_samples: int, value: float) -> None:
        """All coefficients at one value."""
        self.coefficients.data = self.coefficients.new_full((n_samples, n_samples), value).fill_diagonal_(0.0)

    def forward(self, z: Tensor) -> Tensor:
        """The embeddings of all rows as the others make them."""
        return self.coefficients @ z
