"""New centers from sums, and rows for clusters that have none: plain torch on any device."""

from __future__ import annotations

import torch
from torch import Tensor

ROWS = 2048  # rows whose differences are held at a time
LEAST_SHARE = 1e-9  # of a cluster's weight; what is left below it is the rounding of a subtraction


def center_update_torch(sums: Tensor, counts: Tensor, centers: Tensor) -> Tensor:
    """sums / counts in the dtype of centers; a cluster without weight keeps its center."""
    filled = (counts > 0)[:, None]
    means = sums / torch.where(filled, counts[:, None], 1.0)
    return torch.where(filled, means, centers.to(sums.dtype)).to(centers.dtype)


def repair_empty_torch(
    x: Tensor, centers: Tensor, labels: Tensor, sums: Tensor, counts: Tensor, sample_weight: Tensor | None
) -> tuple[Tensor, Tensor]:
    """sums and counts in which each empty cluster holds one of the rows farthest from their centers."""
    n_moved = min(x.shape[0], centers.shape[0])
    sq_dists, farthest = farthest_rows(x, centers, labels, counts, sample_weight, n_moved)

    empty = counts <= 0
    rank = empty.cumsum(0) - 1  # the i-th empty cluster takes the i-th farthest row
    place = rank.clamp(0, n_moved - 1)
    moved = farthest[place]
    taken = empty & (rank < n_moved) & (sq_dists[place] > 0)
    weights = torch.ones_like(counts) if sample_weight is None else sample_weight[moved].to(counts.dtype)
    weight = torch.where(taken, weights, 0.0)
    rows = torch.where(taken[:, None], x[moved].to(sums.dtype), 0.0) * weight[:, None]
    donor = torch.where(taken, labels[moved], 0)
    new_sums = torch.where(empty[:, None], rows, sums).index_put((donor,), -rows, accumulate=True)
    new_counts = torch.where(empty, weight, counts).index_put((donor,), -weight, accumulate=True)
    drained = ~taken & (new_counts <= LEAST_SHARE * counts)
    return torch.where(drained[:, None], 0.0, new_sums), torch.where(drained, 0.0, new_counts)


def farthest_rows(
    x: Tensor, centers: Tensor, labels: Tensor, counts: Tensor, sample_weight: Tensor | None, most: int
) -> tuple[Tensor, Tensor]:
    """Squared distances and numbers (at most ``most``) of the rows farthest from their centers, farthest first.

    Of equals the lowest row comes first. A row that must stay with its cluster has distance 0.
    """
    far, numbers = counts.new_empty(0), torch.empty(0, dtype=torch.int64, device=x.device)
    together = max(ROWS, most)  # of which the farthest are kept: a sort of few rows beside many would repeat itself
    for first in range(0, x.shape[0], together):
        stop = min(first + together, x.shape[0])
        parts = (slice(start, min(start + ROWS, stop)) for start in range(first, stop, ROWS))
        found = (_free_distances(x, centers, labels, counts, sample_weight, here) for here in parts)
        far = torch.cat([far, *found])
        numbers = torch.cat([numbers, torch.arange(first, stop, device=x.device)])
        order = far.sort(descending=True, stable=True).indices[:most]
        far, numbers = far[order], numbers[order]
    return far, numbers


def _free_distances(
    x: Tensor, centers: Tensor, labels: Tensor, counts: Tensor, sample_weight: Tensor | None, here: slice
) -> Tensor:
    """Squared distances of some rows to their centers, 0 for those that must stay: a cluster keeps its last row."""
    own = labels[here].long().clamp(min=0)
    weights = torch.ones_like(counts[:1]) if sample_weight is None else sample_weight[here].to(counts.dtype)
    movable = (labels[here] >= 0) & (weights > 0) & (counts[own] > weights)
    sq_dists = (x[here].to(counts.dtype) - centers[own].to(counts.dtype)).square().sum(dim=1)
    return torch.where(movable, sq_dists, 0.0)
