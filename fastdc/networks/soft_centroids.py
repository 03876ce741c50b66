"""Centers with the softmax assignment of deep k-means."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdc.kernels._checks import check_positive
from fastdc.kernels.gaussian_mixture import gmm_responsibilities
from fastdc.networks.heads import Centroids, Head


class SoftCentroids(Centroids):
    """Cluster centers in the embedding, with the assignment of DKM: the softmax of -|z - c|^2 / temperature.

    Parameters
    ----------
    n_clusters, n_latent : int
    temperature : float
        A buffer, saved with the centers.
    """

    temperature: Tensor

    def __init__(self, n_clusters: int, n_latent: int, temperature: float = 1.0) -> None:
        super().__init__(n_clusters, n_latent)
        self.register_buffer("temperature", torch.tensor(check_positive(temperature, "temperature")))

    def assign(self, z: Tensor) -> Tensor:
        """Soft assignment: the posterior of Gaussians of one variance, temperature / 2, and equal weights."""
        weights = torch.ones_like(self.centers[:, 0]) / len(self.centers)
        variances = (self.temperature / 2).expand(len(self.centers))
        return gmm_responsibilities(z, self.centers, variances, weights, "spherical").responsibilities

    statistics = Head.statistics  # that of Centroids is of its Student t assignment
