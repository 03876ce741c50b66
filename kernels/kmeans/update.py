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
    sq_dists, farthest = _farthest(x, centers, labels, counts, sample_weight, n_moved)

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


def _farthest(
    x: Tensor, centers: Tensor, labels: Tensor, counts: Tensor, sample_weight: Tensor | None, most: int
) -> tuple[Tensor, Tensor]:
    """Squared distances and numbers (most,) of the rows farthest from their centers; 0 for rows that must stay."""
    far, numbers = counts.new_empty(0), labels.new_empty(0)
    for first in range(0, x.shape[0], ROWS):
        rows = x[first : first + ROWS]
        here = slice(first, first + len(rows))
        own = labels[here].clamp(min=0)
        weights = torch.ones_like(counts[:1]) if sample_weight is None else sample_weight[here].to(counts.dtype)
        movable = (labels[here] >= 0) & (weights > 0) & (counts[own] > weights)  # a cluster never gives its last row
        sq_dists = (rows.to(counts.dtype) - centers[own].to(counts.dtype)).square().sum(dim=1)
        far = torch.cat([far, torch.where(movable, sq_dists, 0.0)])
        numbers = torch.cat([numbers, torch.arange(first, here.stop, device=x.device)])
        order = far.sort(descending=True, stable=True).indices[:most]  # of equals the lowest row
        far, numbers = far[order], numbers[order]
    return far, numbers
