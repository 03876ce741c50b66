"""The remedy of k-means for empty clusters, in an embedding that is being trained."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdc.kernels.kmeans import center_update, kmeans_step, repair_empty
from fastdc.kernels.student_t import StudentTStatistics
from fastdc.networks import Centroids
from fastdc.terms.watch import Watch

LLOYD_STEPS = 10


@torch.no_grad()
def continue_kmeans(z: Tensor, centers: Tensor) -> None:
    """Move the centers by a few steps of k-means over all rows."""
    for _ in range(LLOYD_STEPS):
        seen = kmeans_step(z, centers)
        centers.copy_(center_update(seen.sums, seen.counts, centers))


class RepairingWatch(Watch):
    """A watch that puts the center of each empty cluster on the row that lies farthest from its own center.

    The remedy of k-means, at each refresh; ``n_repaired_clusters`` in the history counts the centers that were moved.
    Rows that lie on their center stay, so that equal rows remain in one cluster.

    Parameters
    ----------
    head : Centroids
    """

    head: Centroids

    def look(self, z: Tensor) -> tuple[StudentTStatistics, dict[str, Tensor]]:
        seen, measured = super().look(z)
        moved = torch.zeros_like(measured["n_empty_clusters"])
        if bool(measured["n_empty_clusters"] > 0) and bool((seen.labels >= 0).all()):
            moved = self._repair(z)
        return seen, measured | {"n_repaired_clusters": moved}

    def _repair(self, z: Tensor) -> Tensor:
        """Move the centers of empty clusters; how many were moved."""
        centers = self.head.centers
        step = kmeans_step(z, centers)
        sums, counts = repair_empty(z, centers, step.labels, step.sums, step.counts)
        moved = (step.counts == 0) & (counts > 0)
        centers[moved] = (sums[moved] / counts[moved, None]).to(centers.dtype)
        return moved.sum()
