"""New centers from sums, and rows for clusters that have none: plain torch on any device."""

from __future__ import annotations

import torch
from torch import Tensor

ROWS = 8192  # rows whose differences are held at a time
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
    n = x.shape[0]
    own = labels.clamp(min=0)
    weights = torch.ones_like(counts[:1]).expand(n) if sample_weight is None else sample_weight.to(counts.dtype)
    movable = (labels >= 0) & (weights > 0) & (counts[own] > weights)  # a cluster never gives its last row
    sq_dists = torch.cat(
        [
            (x[i : i + ROWS].to(sums.dtype) - centers[own[i : i + ROWS]].to(sums.dtype)).square().sum(dim=1)
            for i in range(0, n, ROWS)
        ]
    )
    sq_dists = torch.where(movable, sq_dists, 0.0)
    n_moved = min(n, centers.shape[0])
    farthest = sq_dists.sort(descending=True, stable=True).indices[:n_moved]

    empty = counts <= 0
    rank = empty.cumsum(0) - 1  # the i-th empty cluster takes the i-th farthest row
    moved = farthest[rank.clamp(0, n_moved - 1)]
    taken = empty & (rank < n_moved) & (sq_dists[moved] > 0)
    weight = torch.where(taken, weights[moved], 0.0)
    rows = torch.where(taken[:, None], x[moved].to(sums.dtype), 0.0) * weight[:, None]
    donor = torch.where(taken, own[moved], 0)
    new_sums = torch.where(empty[:, None], rows, sums).index_put((donor,), -rows, accumulate=True)
    new_counts = torch.where(empty, weight, counts).index_put((donor,), -weight, accumulate=True)
    drained = ~taken & (new_counts <= LEAST_SHARE * counts)
    return torch.where(drained[:, None], 0.0, new_sums), torch.where(drained, 0.0, new_counts)
