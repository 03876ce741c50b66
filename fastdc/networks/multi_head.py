"""Several classifiers on one embedding."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastdc.networks.heads import Head


class MultiHead(Head):
    """Linear classifiers on the same embedding, one of which makes the clusters.

    Parameters
    ----------
    n_latent, n_clusters, n_heads : int

    Attributes
    ----------
    best : Tensor, int64, zero-dimensional
        The classifier that :meth:`assign` asks; 0 until :meth:`choose` says otherwise.
    """

    best: Tensor

    def __init__(self, n_latent: int, n_clusters: int, n_heads: int = 5) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.layer = nn.Linear(n_latent, n_heads * n_clusters)
        self.register_buffer("best", torch.zeros((), dtype=torch.int64))

    def choose(self, losses: Tensor) -> None:
        """Let the classifier with the least loss make the clusters."""
        self.best.copy_(losses.argmin())

    def forward(self, z: Tensor) -> Tensor:
        """Logits of shape (n_heads, n_samples, n_clusters)."""
        return self.layer(z).unflatten(1, (self.n_heads, -1)).transpose(0, 1)

    def assign(self, z: Tensor) -> Tensor:
        """Softmax of the logits of the best classifier."""
        return self(z)[self.best].softmax(1)
