"""How good a clustering is by its own distances, without known classes: scikit-learn's definitions where it has them.

Points are anything that the estimators read (arrays, tensors on any device, data frames, memory maps), labels any
integer ids. Each score is free of n x n matrices.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from sklearn.utils import check_random_state
from torch import Tensor

from fastdc._input import give_back, read_count, read_points
from fastdc.kernels.contingency import as_integers
from fastdc.kernels.pairwise import (
    ClusterDispersion,
    cluster_dispersion,
    hardest_pairs,
    silhouette_coefficients,
)
from fastdc.metrics.streaming import StreamingSilhouette, read_labels


def silhouette_samples(x: Any, labels: Any, *, metric: str = "euclidean") -> Any:
    r"""Silhouette of each sample: (b - a) / max(a, b), exact, equal to scikit-learn's.

    a is the mean distance to the other samples of the own cluster, b the least mean distance to the samples of
    another one. A sample alone in its cluster has 0.

    Parameters
    ----------
    x : array-like or Tensor of shape (n_samples, n_features)
    labels : array-like or Tensor of shape (n_samples,), integers
        At least 2 and at most n_samples - 1 different ones.
    metric : "euclidean"

    Returns
    -------
    array, or Tensor where x is one, of shape (n_samples,)
        float64 for float64 x, else float32.

    Notes
    -----
    Time grows with the square of n_samples, memory with n_samples: see :func:`simplified_silhouette` for tens of
    millions of rows.

    Examples
    --------
    >>> from fastdc.metrics import silhouette_samples
    >>> silhouette_samples([[0.0], [1.0], [4.0]], [7, 7, 9]).round(4)
    array([0.75  , 0.6667, 0.    ])
    """
    _require_euclidean(metric)
    points, numbers, n_clusters = _read(x, labels)
    return give_back(silhouette_coefficients(points, numbers, n_clusters), x)


def silhouette_score(
    x: Any, labels: Any, *, metric: str = "euclidean", sample_size: int | None = None, random_state: Any = None
) -> float:
    """Mean of :func:`silhouette_samples`, from -1 to 1; higher is better.

    Parameters
    ----------
    x, labels, metric
        As for :func:`silhouette_samples`.
    sample_size : int, optional
        Score a random part of the samples: the same part as scikit-learn's for the same ``random_state``.
    random_state : int, RandomState or None

    Examples
    --------
    >>> from fastdc.metrics import silhouette_score
    >>> round(silhouette_score([[0.0], [1.0], [4.0], [5.0]], [0, 0, 1, 1]), 4)
    0.746
    """
    _require_euclidean(metric)
    points = read_points(x)
    numbers = read_labels(labels, points)
    if sample_size is not None:
        size = read_count(sample_size, "sample_size")
        part = torch.from_numpy(check_random_state(random_state).permutation(len(points))[:size]).to(points.device)
        points, numbers = points[part], numbers[part]
    numbers, n_clusters = _number(numbers)
    return float(silhouette_coefficients(points, numbers, n_clusters).double().mean())


def simplified_silhouette(x: Any, labels: Any, centers: Any = None) -> float:
    """Mean silhouette with distances to the centers in place of mean distances to samples: one pass, any n.

    Of a memory map a part is read at a time; :class:`StreamingSilhouette` takes samples that come in chunks.

    Parameters
    ----------
    x, labels
        As for :func:`silhouette_samples`.
    centers : array-like or Tensor of shape (n_clusters, n_features), optional
        Then labels are their row numbers, 0 ... n_clusters - 1. By default the means of the clusters.

    Examples
    --------
    >>> from fastdc.metrics import simplified_silhouette
    >>> simplified_silhouette([[0.0], [1.0], [4.0], [5.0]], [0, 0, 1, 1]).__round__(4)
    0.873
    """
    if centers is None:
        points, numbers, n_clusters = _read(x, labels)
        middle = cluster_dispersion(points, numbers, n_clusters).centers.to(points.dtype)
    else:
        points = read_points(x)
        numbers = read_labels(labels, points)
        middle = read_points(centers, dtype=points.dtype, device=points.device)
    score = StreamingSilhouette(middle)
    score.update(points, numbers)
    return score.compute()


def davies_bouldin_score(x: Any, labels: Any) -> float:
    r"""Davies-Bouldin index, equal to scikit-learn's; lower is better, 0 is least.

    .. math:: \frac{1}{k} \sum_c \max_{e \ne c} \frac{s_c + s_e}{|\mu_c - \mu_e|}

    with s the mean distance of a cluster's samples to its mean.

    Parameters
    ----------
    x, labels
        As for :func:`silhouette_samples`.

    Examples
    --------
    >>> from fastdc.metrics import davies_bouldin_score
    >>> davies_bouldin_score([[0.0], [1.0], [4.0], [5.0]], [0, 0, 1, 1])
    0.25
    """
    found = _dispersion(x, labels)
    spread = found.distances / found.counts
    between = _center_dists(found.centers)
    if any(bool(torch.allclose(t, torch.zeros_like(t))) for t in (spread, between)):
        return 0.0
    between[between == 0] = math.inf
    return float(((spread[:, None] + spread) / between).amax(dim=1).mean())


def calinski_harabasz_score(x: Any, labels: Any) -> float:
    r"""Variance between clusters over variance within, equal to scikit-learn's; higher is better.

    .. math:: \frac{\sum_c n_c |\mu_c - \mu|^2 / (k - 1)}{\sum_i |x_i - \mu_{l_i}|^2 / (n - k)}

    Parameters
    ----------
    x, labels
        As for :func:`silhouette_samples`.

    Examples
    --------
    >>> from fastdc.metrics import calinski_harabasz_score
    >>> calinski_harabasz_score([[0.0], [1.0], [4.0], [5.0]], [0, 0, 1, 1])
    32.0
    """
    found = _dispersion(x, labels)
    counts = found.counts.double()
    n, k = float(counts.sum()), len(counts)
    mean = (counts[:, None] * found.centers).sum(dim=0) / n
    between = float((counts * (found.centers - mean).square().sum(dim=1)).sum())
    within = float(found.sq_distances.sum())
    return 1.0 if within == 0.0 else between * (n - k) / (within * (k - 1.0))


def dunn_index(x: Any, labels: Any) -> float:
    r"""Least distance between clusters over the largest within one; higher is better. The surveys' SIG too.

    .. math:: \frac{\min_{l_i \ne l_j} |x_i - x_j|}{\max_{l_i = l_j} |x_i - x_j|}

    Exact, over all pairs of samples; infinite where the samples of each cluster coincide.

    Parameters
    ----------
    x, labels
        As for :func:`silhouette_samples`; clusters may all have one sample.

    References
    ----------
    Dunn. Well-separated clusters and optimal fuzzy partitions. Journal of Cybernetics 1974.

    Examples
    --------
    >>> from fastdc.metrics import dunn_index
    >>> dunn_index([[0.0], [1.0], [4.0], [5.0]], [0, 0, 1, 1])
    3.0
    """
    points = read_points(x)
    numbers, _ = _number(read_labels(labels, points), most=len(points))
    pairs = hardest_pairs(points, numbers)
    separation, diameter = float(pairs.negative_dist.min()), float(pairs.positive_dist.max())
    return separation / diameter if diameter > 0 else math.inf


def rmse_to_center(x: Any, labels: Any) -> float:
    r"""Root of the mean squared distance of samples to the mean of their cluster; lower is better.

    .. math:: \sqrt{\frac{1}{n} \sum_i |x_i - \mu_{l_i}|^2}

    Parameters
    ----------
    x, labels
        As for :func:`silhouette_samples`; any number of clusters.

    Examples
    --------
    >>> from fastdc.metrics import rmse_to_center
    >>> rmse_to_center([[0.0], [1.0], [4.0], [5.0]], [0, 0, 1, 1])
    0.5
    """
    points = read_points(x)
    numbers = torch.unique(read_labels(labels, points), return_inverse=True)[1]
    found = cluster_dispersion(points, numbers, int(numbers.max()) + 1)
    return math.sqrt(float(found.sq_distances.sum()) / len(points))


def neighbor_consistency(labels: Any, neighbors: Any) -> float:
    r"""Share of the neighbours of samples that have the sample's own label; higher is better.

    .. math:: \frac{1}{n m} \sum_i |\{j \in N(i) : l_j = l_i\}|

    Parameters
    ----------
    labels : array-like or Tensor of shape (n_samples,), integers
    neighbors : array-like or Tensor of shape (n_samples, n_neighbors), integers
        Row numbers of the neighbours of each sample, itself left out, such as
        ``NearestNeighbors().fit(x).kneighbors(return_distance=False)`` of scikit-learn gives.

    Notes
    -----
    One of the surveys calls it NC and "lower is better"; its formula, this one, is higher for better clusterings.

    Examples
    --------
    >>> from fastdc.metrics import neighbor_consistency
    >>> neighbor_consistency([0, 0, 1], [[1], [0], [1]]).__round__(4)
    0.6667
    """
    numbers = as_integers(labels, "labels").long()
    indices = as_integers(neighbors, "neighbors", ndim=2).long().to(numbers.device)
    if len(indices) != len(numbers):
        raise ValueError(f"neighbors has {len(indices)} rows but labels has {len(numbers)}; give each sample one row")
    if indices.numel() == 0:
        raise ValueError(f"neighbors is empty, shape {tuple(indices.shape)}; it needs at least one row and one column")
    low, high = (int(v) for v in indices.aminmax())
    if low < 0 or high >= len(numbers):
        raise ValueError(f"neighbors must lie in 0 ... {len(numbers) - 1}, the rows of labels, got {low} ... {high}")
    agreeing = sum(int((numbers[indices[:, j]] == numbers).sum()) for j in range(indices.shape[1]))
    return agreeing / indices.numel()


def _dispersion(x: Any, labels: Any) -> ClusterDispersion:
    points, numbers, n_clusters = _read(x, labels)
    found = cluster_dispersion(points, numbers, n_clusters)
    return ClusterDispersion(*(t.cpu() for t in found))


def _center_dists(centers: Tensor) -> Tensor:
    return torch.cdist(centers, centers, compute_mode="donot_use_mm_for_euclid_dist")


def _read(x: Any, labels: Any) -> tuple[Tensor, Tensor, int]:
    """Points, labels numbered 0 ... n_clusters - 1, and n_clusters."""
    points = read_points(x)
    numbers, n_clusters = _number(read_labels(labels, points))
    return points, numbers, n_clusters


def _number(labels: Tensor, most: int | None = None) -> tuple[Tensor, int]:
    """Labels numbered anew; the number of clusters must be one that a score is defined for."""
    present, numbers = torch.unique(labels, return_inverse=True)
    most = len(labels) - 1 if most is None else most
    if not 2 <= len(present) <= most:
        raise ValueError(
            f"Number of labels is {len(present)}. Valid values are 2 to {most}, "
            f"{'one less than ' if most < len(labels) else ''}the number of samples (inclusive)"
        )
    return numbers, len(present)


def _require_euclidean(metric: str) -> None:
    if metric != "euclidean":
        raise ValueError(
            f"metric must be 'euclidean', got {metric!r}; for cosine give rows length one, or use scikit-learn's"
        )
