"""The definitions in plain torch: any device, float64 too. Written to be read, not to be fast.

Byte counts are for n rows, k clusters, d features and s bytes a number.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastdc.kernels._precision import working_dtype

ROWS = 4096  # rows whose differences from their centers are held at a time


def pair_dists_reference(x: Tensor) -> Tensor:
    """|x_i - x_j| of shape (n, n), by differences: nothing cancels."""
    x = x.to(working_dtype(x))
    return torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")  # reads 2 n d s, writes n n s


def silhouette_coefficients_reference(x: Tensor, labels: Tensor, n_clusters: int) -> Tensor:
    """s (n,) in the working dtype."""
    counts = torch.bincount(labels, minlength=n_clusters)
    dists = pair_dists_reference(x).double()
    sums = dists @ torch.nn.functional.one_hot(labels, n_clusters).to(dists)  # reads n n 8, writes n k 8
    own = torch.arange(n_clusters, device=x.device) == labels[:, None]
    a = sums[own] / (counts[labels] - 1)
    means = torch.where(own | (counts == 0), torch.inf, sums / counts)
    b = means.amin(dim=1)  # reads n k 8
    s = torch.where((counts[labels] == 1) | (torch.maximum(a, b) == 0), 0.0, (b - a) / torch.maximum(a, b))
    return s.to(working_dtype(x))


def center_distances_reference(x: Tensor, centers: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Distances (n,) to the own center and to the nearest other one."""
    dtype = working_dtype(x, centers)
    mode = "donot_use_mm_for_euclid_dist"
    dists = torch.cdist(x.to(dtype), centers.to(dtype), compute_mode=mode)  # writes n k s
    own = torch.arange(centers.shape[0], device=x.device) == labels[:, None]
    return dists[own], torch.where(own, torch.inf, dists).amin(dim=1)  # moves 2 n k s


def cluster_dispersion_reference(x: Tensor, labels: Tensor, n_clusters: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """counts (k,) int64, centers (k, d), and the sums (k,) of distances and of their squares; float64."""
    counts = torch.bincount(labels, minlength=n_clusters)
    sums = torch.zeros(n_clusters, x.shape[1], dtype=torch.float64, device=x.device)
    for i in range(0, x.shape[0], ROWS):  # reads n d s
        sums.index_add_(0, labels[i : i + ROWS], x[i : i + ROWS].double())
    centers = sums / counts.clamp(min=1)[:, None]
    spread = torch.zeros(n_clusters, 2, dtype=torch.float64, device=x.device)
    for i in range(0, x.shape[0], ROWS):  # reads n d s
        spread.index_add_(0, labels[i : i + ROWS], own_spread(x[i : i + ROWS], centers, labels[i : i + ROWS]))
    return counts, centers, spread[:, 0], spread[:, 1]


def own_spread(x: Tensor, centers: Tensor, labels: Tensor) -> Tensor:
    """(n, 2): the distance of each row to its own center, and its square; float64."""
    square = (x.double() - centers[labels]).square().sum(dim=1)
    return torch.stack([square.sqrt(), square], dim=1)


def hardest_pairs_reference(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Indices (n,) of the farthest row of the same label and of the nearest of another, and the distances."""
    dists = pair_dists_reference(x)
    same = labels[:, None] == labels
    itself = torch.eye(len(labels), dtype=torch.bool, device=x.device)
    far, positive = torch.where(same & ~itself, dists, -1.0).max(dim=1)  # of equals the first
    near, negative = torch.where(same, torch.inf, dists).min(dim=1)  # moves 2 n n s
    has_positive, has_negative = (same & ~itself).any(dim=1), (~same).any(dim=1)
    return (
        torch.where(has_positive, positive, -1),
        torch.where(has_negative, negative, -1),
        torch.where(has_positive, far, 0.0),
        near,
    )


# --- losses


def pairwise_bce_reference(
    unit: Tensor, labels: Tensor | None, chooser: Tensor | None, upper: float, lower: float, eps: float
) -> Tensor:
    """Mean over the selected pairs of rows (n, k) of length one; the chooser's are, too."""
    g = unit @ unit.T  # writes n n s
    if labels is None:
        chosen = g if chooser is None else chooser @ chooser.T
        positive, negative = chosen >= upper, ~(chosen >= lower)  # NaN is negative, so that it shows
    else:
        known = (labels >= 0) & (labels[:, None] >= 0)
        same = labels == labels[:, None]
        positive, negative = known & same, known & ~same
    other = ~torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    positive, negative = positive & other, negative & other
    g = g.clamp(0.0, 1.0)
    term = torch.where(positive, g, 1.0 - g) + eps  # moves 8 n n s, this line and the next
    total = torch.where(positive | negative, -torch.log(term), 0.0).sum()
    return total / (positive | negative).sum().clamp(min=1)


def soft_nearest_neighbor_loss_reference(x: Tensor, labels: Tensor, temperature: float) -> Tensor:
    x = x.to(working_dtype(x))
    scores = -pair_dists_reference(x).square() / temperature  # moves 3 n n s
    other = ~torch.eye(len(x), dtype=torch.bool, device=x.device)
    same = (labels == labels[:, None]) & other
    valid = same.any(dim=1)
    # rows without a neighbour of their class are filled with anything finite, and left out below
    log_all = torch.where(other | ~valid[:, None], scores, -torch.inf).logsumexp(dim=1)  # moves 4 n n s
    log_same = torch.where(same | ~valid[:, None], scores, -torch.inf).logsumexp(dim=1)  # moves 4 n n s
    return torch.where(valid, log_all - log_same, 0.0).sum() / valid.sum().clamp(min=1)


def triplet_loss_all_reference(x: Tensor, labels: Tensor, margin: float) -> Tensor:
    """Mean over all triplets with a loss above zero, each distance counted as often as triplets hold it."""
    dists = pair_dists_reference(x)
    same = labels[:, None] == labels
    itself = torch.eye(len(labels), dtype=torch.bool, device=x.device)
    with torch.no_grad():
        limits = torch.where(same & ~itself, dists.double() + margin, -torch.inf)  # moves n n (s + 8)
        others = torch.where(same, torch.inf, dists.double())
        added = torch.searchsorted(others.sort(dim=1).values, limits)  # negatives below the limit; moves 4 n n 8
        taken = len(x) - torch.searchsorted(limits.sort(dim=1).values, others, right=True)  # limits above the negative
        count = added.sum().double()
    total = ((added - taken) * dists.double()).sum() + margin * count  # moves 3 n n 8
    return (total / count.clamp(min=1)).to(dists.dtype)


def row_dists(a: Tensor, b: Tensor) -> Tensor:
    """|a_i - b_i| (n,), whose gradient at zero is zero."""
    square = (a - b).square().sum(dim=1)  # reads 2 n d s
    positive = square > 0
    return torch.where(positive, torch.where(positive, square, 1.0).sqrt(), square)
