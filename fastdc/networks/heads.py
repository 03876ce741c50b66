"""Heads: what turns embeddings into cluster assignments."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastdc.kernels._checks import check_positive
from fastdc.kernels.student_t import StudentTStatistics, student_t_assign, student_t_statistics


class Centroids(nn.Module):
    """Cluster centers in the embedding, with the Student t assignment of DEC.

    Parameters
    ----------
    n_clusters, n_latent : int
        Shape of the centers.
    alpha : float
        Degrees of freedom of the Student t kernel.

    Attributes
    ----------
    centers : nn.Parameter of shape (n_clusters, n_latent)
        NaN until :meth:`place` sets them.
    """

    centers: nn.Parameter

    def __init__(self, n_clusters: int, n_latent: int, alpha: float = 1.0) -> None:
        super().__init__()
        self.alpha = check_positive(alpha, "alpha")
        self.centers = nn.Parameter(torch.full((n_clusters, n_latent), float("nan")))

    @torch.no_grad()
    def place(self, centers: Tensor) -> None:
        """Put the centers where an initialisation found them."""
        self.centers.copy_(centers)

    def assign(self, z: Tensor) -> Tensor:
        """Soft assignment q of shape (n_samples, n_clusters)."""
        return student_t_assign(z, self.centers, self.alpha)

    def statistics(self, z: Tensor, previous_labels: Tensor | None = None) -> StudentTStatistics:
        """Labels, confidence, frequencies, label changes and entropy in one pass, free of n x k."""
        return student_t_statistics(z, self.centers, self.alpha, previous_labels)
