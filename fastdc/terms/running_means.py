"""Centers that follow the embedding by counting, not by gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdc.kernels._checks import check_positive
from fastdc.kernels.kmeans import kmeans_loss, kmeans_step
from fastdc.networks import Centroids
from fastdc.terms.repairing import RepairingWatch, continue_kmeans
from fastdc.training import Batch


class RunningMeans(RepairingWatch):
    """Squared distance of embeddings to the nearest center (DCN), each center the running mean of what came to it.

    After a step its rows, embedded anew, go to their nearest centers one after the other: the count of the center
    goes up by one, and it moves towards the row by one part in that count. In closed form, for a center of count n
    that meets m rows of sum s, that is (n center + s) / (n + m), whatever their order.

    Counts grow and the network moves on, so that such a mean falls behind. Therefore each refresh ends with a few
    steps of k-means over all rows, and centers move like new ones from there.

    Parameters
    ----------
    head : Centroids
    initial_count : float
        Of each center; the higher, the slower they move at first.
    """

    name = "clustering"

    def __init__(self, head: Centroids, initial_count: float = 100.0) -> None:
        super().__init__(head)
        self.initial_count = check_positive(initial_count, "initial_count")

    def forward(self, batch: Batch) -> Tensor:
        return kmeans_loss(batch.z, self.head.centers.detach(), None, "hard")

    @torch.no_grad()
    def refresh(self, z: Tensor) -> dict[str, Tensor]:
        measured = super().refresh(z)
        continue_kmeans(z, self.head.centers)
        self.memory.pop("counts", None)
        return measured

    @torch.no_grad()
    def after_step(self, batch: Batch) -> None:
        centers = self.head.centers
        seen = kmeans_step(batch.anew().z.to(centers), centers)
        come = torch.cat([seen.sums, seen.counts[:, None]], dim=1)
        batch.ranks.mean(come)
        sums, counts = (come * batch.ranks.size).split([centers.shape[1], 1], dim=1)
        before = self.memory.get("counts", torch.full_like(counts, self.initial_count))
        self.memory["counts"] = before + counts
        centers.add_((sums - counts * centers) / self.memory["counts"])
