"""Centers whose Student t assignment has a scale."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdc.kernels._checks import check_positive
from fastdc.kernels.kmeans import nearest_center
from fastdc.networks.heads import Centroids


class ScaledCentroids(Centroids):
    """Cluster centers in the embedding, with a Student t assignment of some scale: distances are divided by it.

    Parameters
    ----------
    n_clusters, n_latent : int
    alpha : float
        Degrees of freedom.
    scale : float
        A buffer, saved with the centers.
    """

    scale: Tensor

    def __init__(self, n_clusters: int, n_latent: int, alpha: float = 1.0, scale: float = 1.0) -> None:
        super().__init__(n_clusters, n_latent, alpha)
        self.register_buffer("scale", torch.tensor(check_positive(scale, "scale")))

    def compared(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return z / self.scale, self.centers / self.scale

    @torch.no_grad()
    def measure(self, z: Tensor) -> None:
        """Take as scale the standard deviation of these embeddings about their nearest centers, a feature."""
        spread = nearest_center(z, self.centers).sq_dists.mean() / z.shape[1]
        self.scale.copy_(torch.where(spread > 0, spread, 1.0).sqrt())
