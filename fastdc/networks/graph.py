"""Networks of graph methods: heads that see embeddings through a linear map."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fastdc.kernels.student_t import StudentTStatistics
from fastdc.networks.heads import Centroids


class MappedCentroids(Centroids):
    """Centers among embeddings that are shifted and multiplied by a matrix, which no gradient changes.

    Parameters
    ----------
    n_clusters, n_latent : int
    unit : bool
        Whether the mapped embeddings are scaled to length one.

    Attributes
    ----------
    offset, map : buffers of shape (n_latent,) and (n_latent, n_latent)
        ``head(z)`` is (z - offset) @ map.
    """

    offset: Tensor
    map: Tensor

    def __init__(self, n_clusters: int, n_latent: int, unit: bool = False) -> None:
        super().__init__(n_clusters, n_latent)
        self.unit = unit
        self.register_buffer("offset", torch.zeros(n_latent))
        self.register_buffer("map", torch.eye(n_latent))

    def forward(self, z: Tensor) -> Tensor:
        """The mapped embeddings, where the centers are."""
        mapped = (z - self.offset) @ self.map
        return normalize(mapped, dim=1) if self.unit else mapped

    def assign(self, z: Tensor) -> Tensor:
        return super().assign(self(z))

    def statistics(self, z: Tensor, previous_labels: Tensor | None = None) -> StudentTStatistics:
        return super().statistics(self(z), previous_labels)

    @torch.no_grad()
    def whiten(self, z: Tensor, center: bool = True, ridge: float = 1e-6) -> None:
        """Set the map such that the columns of these embeddings become orthonormal, times the root of their number.

        With ``center`` their means become 0, as of principal components. The Cholesky factor is of the second moments
        in float64, plus ``ridge`` times their mean, so that columns that depend on each other raise no error.
        """
        rows = z.double()
        offset = rows.mean(0) if center else torch.zeros_like(rows[0])
        rows = rows - offset
        moments = rows.T @ rows / len(rows)
        tiny = torch.finfo(torch.float64).tiny
        moments.diagonal().add_(ridge * moments.diagonal().mean() + tiny)
        factor = torch.linalg.cholesky_ex(moments).L
        inverse = torch.linalg.solve_triangular(factor, torch.eye(len(factor)).to(factor), upper=False)
        self.offset.copy_(offset)
        self.map.copy_(inverse.T)
