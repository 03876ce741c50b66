"""The room's functions that judge clusterings: their docstrings are the specification."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from fastdc.kernels._backend import choose
from fastdc.kernels._checks import check_centers, check_labels, check_points
from fastdc.kernels.pairwise import custom_ops, reference


class CenterDistances(NamedTuple):
    """What :func:`center_distances` returns."""

    own: Tensor  # (n,) distance to the center of the row's label
    other: Tensor  # (n,) distance to the nearest other center; infinite where there is none


class ClusterDispersion(NamedTuple):
    """What :func:`cluster_dispersion` returns, float64 but for the counts."""

    counts: Tensor  # (n_clusters,) int64
    centers: Tensor  # (n_clusters, n_features) means; zeros for an empty cluster
    distances: Tensor  # (n_clusters,) sums over rows of |x - center|
    sq_distances: Tensor  # (n_clusters,) sums over rows of |x - center|^2


class HardestPairs(NamedTuple):
    """What :func:`hardest_pairs` returns."""

    positive: Tensor  # (n,) int64, the farthest other row of the same label; -1 where there is none
    negative: Tensor  # (n,) int64, the nearest row of another label; -1 where there is none
    positive_dist: Tensor  # (n,) its distance; 0 where there is none
    negative_dist: Tensor  # (n,) its distance; infinite where there is none


def silhouette_coefficients(x: Tensor, labels: Tensor, n_clusters: int, *, backend: str | None = None) -> Tensor:
    r"""Exact silhouette of each row, from the distances of all pairs of rows, of which none is held.

    .. math:: s_i = \frac{b_i - a_i}{\max(a_i, b_i)}, \quad
              a_i = \frac{1}{n_{l_i} - 1} \sum_{j : l_j = l_i} |x_i - x_j|, \quad
              b_i = \min_{c \ne l_i} \frac{1}{n_c} \sum_{j : l_j = c} |x_i - x_j|

    A row alone in its cluster has s = 0. Same as, without any (n_samples, n_samples) matrix::

        dists = torch.cdist(x, x)
        sums = dists @ one_hot(labels).to(dists)
        own = one_hot(labels).bool()
        a, b = sums[own] / (counts[labels] - 1), (sums / counts).masked_fill(own, inf).amin(1)
        s = (b - a) / torch.maximum(a, b)

    Parameters
    ----------
    x : Tensor of shape (n_samples, n_features), float32 | float64 | float16 | bfloat16
        Any strides.
    labels : Tensor of shape (n_samples,), int64
        0 ... n_clusters - 1. Clusters without a row are passed over; two or more need rows, else s is NaN.
    n_clusters : int
    backend : {None, "reference", "numba", "triton"}
        None chooses by device (see ``fastdc.explain``); a name forces it or raises ``BackendError``.

    Returns
    -------
    s : Tensor of shape (n_samples,)
        float64 for float64 x, else float32.

    Notes
    -----
    Memory: a copy of the rows sorted by label, 40 bytes a row, the centers, and 100 kB a thread; on GPUs one
    copy more.
    Precision: distances are as exact as differences; sums over a cluster are float64.
    Determinism: same bits for any number of threads on CPUs; no atomics on GPUs.

    References
    ----------
    Rousseeuw. Silhouettes: a graphical aid to the interpretation and validation of cluster analysis. 1987.

    Examples
    --------
    >>> import torch
    >>> silhouette_coefficients(torch.tensor([[0.0], [1.0], [4.0]]), torch.tensor([0, 0, 1]), 2)
    tensor([0.7500, 0.6667, 0.0000])
    """
    check_points(x)
    _check_numbered(labels, x, n_clusters)
    name = choose("silhouette_coefficients", x, backend)
    if name == "reference":
        return reference.silhouette_coefficients_reference(x.detach(), labels, n_clusters)
    return custom_ops.call("silhouette_coefficients", name, x.detach(), labels, n_clusters)


def hardest_pairs(x: Tensor, labels: Tensor, *, backend: str | None = None) -> HardestPairs:
    r"""Of each row the farthest row of the same label and the nearest of another, by Euclidean distance.

    The mining step of the batch-hard triplet loss (Hermans et al., eq. 5), and what Dunn's index is made of.
    Same as, without any (n_samples, n_samples) matrix::

        dists = torch.cdist(x, x)
        same = labels == labels[:, None]
        positive = dists.masked_fill(~same | torch.eye(n).bool(), -1).argmax(1)
        negative = dists.masked_fill(same, inf).argmin(1)

    Parameters
    ----------
    x : Tensor of shape (n_samples, n_features), float32 | float64 | float16 | bfloat16
    labels : Tensor of shape (n_samples,), int64
        Any ids.
    backend
        As in :func:`silhouette_coefficients`.

    Returns
    -------
    HardestPairs
        positive, negative, positive_dist, negative_dist. Of equally far rows the first; a distance that is NaN is
        farther and nearer than any number.

    Notes
    -----
    Gradients: none; take the rows at the indices and their distances anew.
    Memory: 20 bytes a row, and on CPUs two copies of the rows.

    References
    ----------
    Hermans, Beyer, Leibe. In Defense of the Triplet Loss for Person Re-Identification. 2017.

    Examples
    --------
    >>> import torch
    >>> pairs = hardest_pairs(torch.tensor([[0.0], [1.0], [4.0]]), torch.tensor([0, 0, 1]))
    >>> pairs.positive, pairs.negative
    (tensor([ 1,  0, -1]), tensor([2, 2, 1]))
    """
    check_points(x)
    check_labels(labels, x.shape[0], "labels", x)
    name = choose("hardest_pairs", x, backend)
    if name == "reference":
        return HardestPairs(*reference.hardest_pairs_reference(x.detach(), labels))
    return HardestPairs(*custom_ops.call("hardest_pairs", name, x.detach(), labels))


def center_distances(x: Tensor, centers: Tensor, labels: Tensor, *, backend: str | None = None) -> CenterDistances:
    r"""Distance of each row to its own center and to the nearest other one, in one pass over the rows.

    From them follow the simplified silhouette (other - own) / max(own, other) and errors to the centers. Same
    as, without any (n_samples, n_clusters) matrix::

        dists = torch.cdist(x, centers)
        own = dists.gather(1, labels[:, None])[:, 0]
        other = dists.scatter(1, labels[:, None], inf).amin(1)

    Parameters
    ----------
    x : Tensor of shape (n_samples, n_features), float32 | float64 | float16 | bfloat16
        Any strides. Rows are independent, so that data may come in parts.
    centers : Tensor of shape (n_clusters, n_features)
    labels : Tensor of shape (n_samples,), int64
        0 ... n_clusters - 1: the center of each row, which need not be the nearest.
    backend
        As in :func:`silhouette_coefficients`.

    Returns
    -------
    CenterDistances
        own, other; float64 where an input is float64, else float32.

    Notes
    -----
    Memory: the result, and on CPUs 270 bytes a center and thread. Precision: as exact as differences.

    References
    ----------
    Hruschka, Campello, de Castro. Evolving clusters in gene-expression data. Information Sciences 2006.

    Examples
    --------
    >>> import torch
    >>> x, centers = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.5], [3.0]])
    >>> center_distances(x, centers, torch.tensor([0, 1]))
    CenterDistances(own=tensor([0.5000, 2.0000]), other=tensor([3.0000, 0.5000]))
    """
    check_points(x)
    check_centers(centers, x)
    _check_numbered(labels, x, centers.shape[0])
    name = choose("center_distances", x, backend)
    arguments = (x.detach(), centers.detach(), labels)
    if name == "reference":
        return CenterDistances(*reference.center_distances_reference(*arguments))
    return CenterDistances(*custom_ops.call("center_distances", name, *arguments))


def cluster_dispersion(x: Tensor, labels: Tensor, n_clusters: int, *, backend: str | None = None) -> ClusterDispersion:
    r"""Size and mean of each cluster, and the sums of distances and squared distances to that mean.

    What Davies-Bouldin, Calinski-Harabasz and the error to the centers are made of, in two passes over the rows.
    Same as::

        counts = torch.bincount(labels, minlength=n_clusters)
        centers = torch.zeros(n_clusters, n_features).index_add(0, labels, x) / counts[:, None]
        square = (x - centers[labels]).square().sum(1)
        distances = torch.bincount(labels, square.sqrt(), n_clusters)
        sq_distances = torch.bincount(labels, square, n_clusters)

    Parameters
    ----------
    x : Tensor of shape (n_samples, n_features), float32 | float64 | float16 | bfloat16
        Any strides; a memory map too, which is read a block at a time.
    labels : Tensor of shape (n_samples,), int64
        0 ... n_clusters - 1.
    n_clusters : int
    backend
        As in :func:`silhouette_coefficients`.

    Returns
    -------
    ClusterDispersion
        counts, centers, distances, sq_distances.

    Notes
    -----
    Memory: on CPUs 8 bytes times the size of the centers, a thread. Precision: float64 throughout.
    Determinism: same bits for any number of threads on CPUs; no atomics on GPUs.

    Examples
    --------
    >>> import torch
    >>> cluster_dispersion(torch.tensor([[0.0], [2.0], [5.0]]), torch.tensor([0, 0, 1]), 2).sq_distances
    tensor([2., 0.], dtype=torch.float64)
    """
    check_points(x)
    _check_numbered(labels, x, n_clusters)
    name = choose("cluster_dispersion", x, backend)
    if name == "reference":
        return ClusterDispersion(*reference.cluster_dispersion_reference(x.detach(), labels, n_clusters))
    return ClusterDispersion(*custom_ops.call("cluster_dispersion", name, x.detach(), labels, n_clusters))


def _check_numbered(labels: Tensor, x: Tensor, n_clusters: int) -> None:
    check_labels(labels, x.shape[0], "labels", x)
    custom_ops.require_numbered(labels, n_clusters)
