"""Losses that draw embeddings to their cluster's center."""

from __future__ import annotations

from torch import Tensor, nn

from fastdc.kernels._checks import check_positive
from fastdc.kernels.kmeans import kmeans_loss


class KMeansLoss(nn.Module):
    """Mean squared distance to centers, which are its parameter: :func:`fastdc.kmeans_loss` for a training loop.

    Parameters
    ----------
    centers : Tensor of shape (n_clusters, n_latent)
        Where the centers start, from k-means in the embedding for instance.
    mode : {"hard", "soft"}
        The loss of DCN or that of DKM.
    temperature : float
        Of the soft loss, 1 / alpha of DKM. An attribute that a schedule may change.

    Examples
    --------
    >>> import torch
    >>> criterion = KMeansLoss(torch.tensor([[0.0], [4.0]]), mode="soft")
    >>> loss = criterion(torch.tensor([[0.0], [1.0], [4.0]]))
    >>> loss.backward()
    >>> criterion.centers.grad.shape
    torch.Size([2, 1])
    """

    def __init__(self, centers: Tensor, mode: str = "hard", temperature: float = 1.0) -> None:
        super().__init__()
        self.centers = nn.Parameter(centers.detach().clone())
        self.mode, self.temperature = mode, check_positive(temperature, "temperature")

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """The loss of the rows ``z``; with ``labels`` of these instead of the nearest centers."""
        return kmeans_loss(z, self.centers, labels, self.mode, self.temperature)
