"""Clusters of given sizes by optimal transport."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdc.kernels._checks import check_positive
from fastdc.kernels.kmeans import kmeans_step
from fastdc.kernels.sinkhorn import optimal_transport_loss
from fastdc.networks import Centroids
from fastdc.terms.repairing import RepairingWatch
from fastdc.training import Batch

SMALLEST = 1e-12  # epsilon, where all rows lie on their centers


class OptimalTransport(RepairingWatch):
    """Cost of moving the embeddings of a batch onto the centers such that each center gets its share of them.

    Parameters
    ----------
    head : Centroids
    epsilon : float
        Entropic regularisation, as a share of the mean squared distance between all embeddings and their nearest
        centers at the last refresh. The plan is that of 100 iterations: the smaller epsilon is beside the distances
        between centers, the further the clusters of a batch are from their shares.
    shares : Tensor of shape (n_clusters,), optional
        Above 0, up to a factor; None is equal ones. The largest is for the cluster that is largest at the first
        refresh, and so on.
    """

    name = "clustering"

    def __init__(self, head: Centroids, epsilon: float, shares: Tensor | None = None) -> None:
        super().__init__(head)
        self.share_of_distance, self.shares = check_positive(epsilon, "epsilon"), shares

    def start_epoch(self, progress: float) -> None:
        if "epsilon" in self.memory:
            self.epsilon = float(self.memory["epsilon"])

    @torch.no_grad()
    def refresh(self, z: Tensor) -> dict[str, Tensor]:
        seen, measured = self.look(z)
        distance = kmeans_step(z, self.head.centers).inertia / len(z)
        self.memory["epsilon"] = (self.share_of_distance * distance).clamp(min=SMALLEST)
        self.epsilon = float(self.memory["epsilon"])
        if self.shares is not None and "shares" not in self.memory:
            smallest_first = seen.labels.clamp(min=0).bincount(minlength=len(self.shares)).argsort()
            self.memory["shares"] = torch.empty_like(self.shares, device=z.device)
            self.memory["shares"][smallest_first] = self.shares.sort().values.to(z.device)
        return measured

    def forward(self, batch: Batch) -> Tensor:
        shares = self.memory.get("shares")
        return optimal_transport_loss(batch.z, self.head.centers, self.epsilon, column_marginal=shares)
