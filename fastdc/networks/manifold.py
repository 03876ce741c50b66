"""A head that goes over a manifold: new rows get their places from the rows that were fitted."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastdc.kernels.gaussian_mixture import gmm_responsibilities
from fastdc.kernels.neighbors import knn
from fastdc.networks._shapes import TakesShapes
from fastdc.networks.heads import Head

N_NEIGHBORS = 15  # that a new row's place is made from


class ManifoldMixture(TakesShapes, Head):
    """A Gaussian mixture on a manifold of the embeddings, which is known at the fitted rows.

    A new embedding gets the mean place of its nearest fitted ones, weighed by 1 / distance²; a fitted one keeps its
    own. So a row's place does not depend on the other rows of a call, for any manifold.

    Parameters
    ----------
    n_clusters, n_latent : int

    Attributes
    ----------
    points, places : buffers of shape (n_samples, n_latent) and (n_samples, n_components)
        The fitted embeddings, and where the manifold has them. Empty until :meth:`place` sets them.
    means, covariances, weights : nn.Parameter
        Of the mixture, (n_clusters, n_components), (n_clusters, n_components, n_components) and (n_clusters,).
    """

    points: Tensor
    places: Tensor

    def __init__(self, n_clusters: int, n_latent: int) -> None:
        super().__init__()
        self.register_buffer("points", torch.empty(0, n_latent))
        self.register_buffer("places", torch.empty(0, 1))
        self.means = nn.Parameter(torch.full((n_clusters, 1), float("nan")))
        self.covariances = nn.Parameter(torch.full((n_clusters, 1, 1), float("nan")))
        self.weights = nn.Parameter(torch.full((n_clusters,), float("nan")))

    @torch.no_grad()
    def place(self, points: Tensor, places: Tensor, means: Tensor, covariances: Tensor, weights: Tensor) -> None:
        """Set the manifold, and the mixture on it."""
        self.points, self.places = points, places
        self.means.data, self.covariances.data, self.weights.data = means, covariances, weights

    @torch.no_grad()
    def locate(self, z: Tensor) -> Tensor:
        """Places of embeddings on the manifold, (n_samples, n_components)."""
        near = knn(self.points, min(N_NEIGHBORS, len(self.points)), z)
        nearest = near.distances[:, :1]
        weights = torch.where(near.distances > 0, nearest / near.distances, 1.0).square()
        weights = weights / weights.sum(1, keepdim=True)
        return (weights[:, :, None].to(self.places) * self.places[near.indices]).sum(1)

    def assign(self, z: Tensor) -> Tensor:
        """Responsibilities of the components at the places of the embeddings."""
        mixture = (self.means, self.covariances, self.weights)
        return gmm_responsibilities(self.locate(z), *mixture, "full").responsibilities
