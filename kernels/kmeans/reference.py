"""The definition in plain torch: any device, float64 too. Written to be read, not to be fast.

Byte counts are for n rows, k centers, d features and s bytes a number.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastdc.kernels._precision import working_dtype


def sq_dists_reference(x: Tensor, centers: Tensor) -> Tensor:
    """|x_i - c_j|^2 of shape (n_samples, n_clusters), by differences: nothing cancels."""
    dtype = working_dtype(x, centers)
    difference = x.to(dtype)[:, None, :] - centers.to(dtype)[None, :, :]  # writes n k d s
    return difference.square().sum(dim=2)  # reads n k d s, writes n k s


def nearest_center_reference(x: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """labels and squared distances; label -1 where no center is at a finite distance."""
    sq_dists = sq_dists_reference(x, centers)
    smallest, labels = torch.where(sq_dists.isnan(), torch.inf, sq_dists).min(dim=1)  # moves 3 n k s
    smallest = torch.where(x.isnan().any(dim=1), torch.nan, smallest)  # reads n d s
    return torch.where(smallest.isfinite(), labels, -1), smallest


def kmeans_step_reference(
    x: Tensor, centers: Tensor, sample_weight: Tensor | None, previous_labels: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """labels, sums, counts, inertia and n_changed; a row with label -1 adds to nothing."""
    labels, sq_dists = nearest_center_reference(x, centers)
    wide = torch.float32 if x.device.type == "mps" else torch.float64
    weights = torch.ones_like(labels, dtype=wide) if sample_weight is None else sample_weight.to(wide)
    valid = labels >= 0
    weights = torch.where(valid, weights, 0.0)
    rows = torch.where(valid[:, None], x.to(wide), 0.0) * weights[:, None]  # writes 16 n d
    target = labels.clamp(min=0)
    sums = torch.zeros(centers.shape, dtype=wide, device=x.device).index_add(0, target, rows)  # reads 8 n d
    counts = torch.zeros(len(centers), dtype=wide, device=x.device).index_add(0, target, weights)
    inertia = (torch.where(valid, sq_dists.to(wide), 0.0) * weights).sum()
    if previous_labels is None:
        n_changed = torch.full((), len(x), dtype=torch.int64, device=x.device)
    else:
        n_changed = (labels != previous_labels).sum()
    return labels, sums, counts, inertia, n_changed


def kmeans_plusplus_reference(x: Tensor, weights: Tensor | None, uniforms: Tensor) -> Tensor:
    """Indices (n_clusters,) of greedy k-means++; uniforms (n_clusters, n_candidates) are its chance."""
    weights = torch.ones(len(x), dtype=torch.float64, device=x.device) if weights is None else weights.double()
    x = torch.where(weights[:, None] > 0, x, 0.0)  # rows of no weight may be NaN
    indices = [_draw(weights, uniforms[0, :1])[0]]
    closest = sq_dists_reference(x, x[indices[0], None])[:, 0]
    for draws in uniforms[1:]:
        mass = weights * closest
        if not bool(mass.sum() > 0):  # every row lies on a center
            indices.append(_draw(weights, draws[:1])[0])
            continue
        candidates = _draw(mass, draws)
        nearer = torch.minimum(sq_dists_reference(x, x[candidates]), closest[:, None])  # moves n c (d + 2) s
        best = int((weights[:, None] * nearer).sum(dim=0).argmin())
        indices.append(candidates[best])
        closest = nearer[:, best]
    return torch.stack(indices)


def _draw(mass: Tensor, uniforms: Tensor) -> Tensor:
    """Indices drawn in proportion to mass (float64) by inverting its running sum."""
    running = mass.cumsum(0)
    drawn = torch.searchsorted(running, uniforms.to(running) * running[-1], right=True)
    return drawn.clamp(max=int(mass.nonzero()[-1]))


def kmeans_loss_reference(x: Tensor, centers: Tensor, labels: Tensor | None, temperature: float | None) -> Tensor:
    """Sum over rows; ``temperature`` is None for the hard loss."""
    dtype = working_dtype(x, centers)
    if temperature is not None:
        sq_dists = sq_dists_reference(x, centers)
        weights = (sq_dists / -temperature).softmax(dim=1)  # moves 4 n k s
        return (weights * sq_dists).sum()  # moves 4 n k s
    if labels is None:
        labels = nearest_center_reference(x.detach(), centers.detach())[0].clamp(min=0)
    own = centers.to(dtype)[labels.clamp(min=0)]  # writes n d s
    sq_dists = (x.to(dtype) - own).square().sum(dim=1)
    return torch.where(labels >= 0, sq_dists, 0.0).sum()
