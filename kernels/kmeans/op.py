"""Assignment, one Lloyd pass, new centers, empty clusters: the docstrings are the specification."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from fastdc.kernels import _checks
from fastdc.kernels._backend import choose
from fastdc.kernels._checks import check_centers, check_labels, check_points, check_vector
from fastdc.kernels._precision import resolve_precision
from fastdc.kernels.kmeans import custom_ops
from fastdc.kernels.kmeans.reference import kmeans_step_reference, nearest_center_reference
from fastdc.kernels.kmeans.update import center_update_torch, repair_empty_torch


class NearestCenter(NamedTuple):
    """Each row's nearest center and the squared distance to it."""

    labels: Tensor
    sq_dists: Tensor


class KMeansStep(NamedTuple):
    """What one pass over the rows yields. ``merge`` puts the results of chunks together."""

    labels: Tensor
    sums: Tensor
    counts: Tensor
    inertia: Tensor
    n_changed: Tensor

    @staticmethod
    def merge(parts: Iterable[KMeansStep]) -> KMeansStep:
        """The step over all rows from those of consecutive chunks: labels follow each other, sums add up."""
        chunks = list(parts)
        if not chunks:
            raise ValueError("merge() needs the result of at least one chunk, got none")
        return KMeansStep(
            labels=torch.cat([c.labels for c in chunks]),
            sums=torch.stack([c.sums for c in chunks]).sum(dim=0),
            counts=torch.stack([c.counts for c in chunks]).sum(dim=0),
            inertia=torch.stack([c.inertia for c in chunks]).sum(),
            n_changed=torch.stack([c.n_changed for c in chunks]).sum(),
        )


def nearest_center(
    x: Tensor,
    centers: Tensor,
    *,
    check_finite: bool = False,
    backend: str | None = None,
    precision: str | None = None,
) -> NearestCenter:
    r"""Nearest center of each row, the assignment step of Lloyd's algorithm.

    .. math:: \mathrm{label}_i = \arg\min_j \|x_i - c_j\|^2

    Same as, without any (n_samples, n_clusters) matrix::

        sq_dists, labels = (x[:, None] - centers).square().sum(2).min(1)

    Parameters
    ----------
    x : Tensor of shape (n_samples, n_features), float32 | float64 | float16 | bfloat16
        Points. Any strides.
    centers : Tensor of shape (n_clusters, n_features)
        May differ from x in floating dtype.
    check_finite : bool
        Raise ValueError where x or centers hold NaN or infinity. Off by default: the check waits for the
        device.
    backend : {None, "reference", "numba", "triton"}
        None chooses by device (see ``fastdc.explain``); a name forces it or raises ``BackendError``.
    precision : {None, "ieee", "tf32x3", "bf16x6", "tf32", "bf16"}
        Of the products inside the kernel. None is as accurate as IEEE float32. With "tf32" and "bf16" a
        center may be chosen that is farther by the rounding of that precision; the distance returned is still
        exact.

    Returns
    -------
    labels : Tensor of shape (n_samples,), int64
        Of equally near centers the lowest index. -1 where a row has NaN or no center is at a finite distance.
        A center with NaN is nearest to nothing.
    sq_dists : Tensor of shape (n_samples,), float32 (float64 where an input is)
        Squared distance to that center. NaN where the row has NaN, infinite where no center is at a finite
        distance.

    Notes
    -----
    Gradients: none; the results are detached.
    Memory: the results, and per thread a scratch of 260 bytes a feature and 40 KB.
    Precision: computed in float32 or wider, of differences x - c wherever a product's rounding could change a
    label: on CPUs labels of float32 rows are those of float64 distances, also far from the origin.
    Determinism: same bits for any number of threads on CPUs.
    Limits: squared distances above the dtype's range (3.4e38) count as infinite. Tested from 1 to 16,777,217
    rows, 20,000 centers, 100,003 features.

    References
    ----------
    Lloyd. Least squares quantization in PCM. IEEE Transactions on Information Theory, 1982.

    Examples
    --------
    >>> import torch
    >>> nearest_center(torch.tensor([[0.0], [3.0]]), torch.tensor([[1.0], [4.0]]))
    NearestCenter(labels=tensor([0, 1]), sq_dists=tensor([1., 1.]))
    """
    check_points(x)
    check_centers(centers, x)
    if check_finite:
        _checks.check_finite(("x", x), ("centers", centers))
    name = choose("nearest_center", x, backend)
    precision = resolve_precision(precision, name, x)
    x, centers = x.detach(), centers.detach()
    if name == "reference":
        return NearestCenter(*nearest_center_reference(x, centers))
    return NearestCenter(*custom_ops.nearest_center(name, x, centers, precision))


def kmeans_step(
    x: Tensor,
    centers: Tensor,
    *,
    sample_weight: Tensor | None = None,
    previous_labels: Tensor | None = None,
    check_finite: bool = False,
    backend: str | None = None,
    precision: str | None = None,
) -> KMeansStep:
    r"""Everything an iteration of Lloyd's algorithm needs, from one pass over the rows.

    Same as, without any (n_samples, n_clusters) matrix::

        labels, sq_dists = nearest_center(x, centers)
        sums = torch.zeros_like(centers).index_add(0, labels, x * weight[:, None])
        counts = torch.bincount(labels, weight, minlength=len(centers))
        inertia = (weight * sq_dists).sum()
        n_changed = (labels != previous_labels).sum()

    Parameters
    ----------
    x : Tensor of shape (n_samples, n_features), float32 | float64 | float16 | bfloat16
    centers : Tensor of shape (n_clusters, n_features)
    sample_weight : Tensor of shape (n_samples,), optional
        Finite, 0 or above. None is one for each row.
    previous_labels : Tensor of shape (n_samples,), int64, optional
        Labels of the last iteration. Without them every row counts as changed.
    check_finite, backend, precision
        As in :func:`nearest_center`.

    Returns
    -------
    labels : Tensor of shape (n_samples,), int64
        As of :func:`nearest_center`. A row with label -1 adds to none of the sums.
    sums : Tensor of shape (n_clusters, n_features), float64
        Weighted sum of the rows of each cluster.
    counts : Tensor of shape (n_clusters,), float64
        Sum of their weights; without weights whole numbers, exact up to 2^53.
    inertia : Tensor, float64, zero-dimensional
        Weighted sum of squared distances to the nearest center.
    n_changed : Tensor, int64, zero-dimensional
        How many labels differ from the previous ones.

    Notes
    -----
    Gradients: none; the results are detached.
    Memory: the results, and per thread 8 bytes a center and feature beside the scratch of
    :func:`nearest_center`.
    Precision: sums and inertia accumulate in float64.
    Streaming: call it a chunk of rows at a time; ``KMeansStep.merge`` adds up.
    Determinism: same bits for any number of threads on CPUs, and from run to run on GPUs (no float atomics).

    References
    ----------
    Lloyd. Least squares quantization in PCM. IEEE Transactions on Information Theory, 1982.

    Examples
    --------
    >>> import torch
    >>> step = kmeans_step(torch.tensor([[0.0], [3.0], [5.0]]), torch.tensor([[1.0], [4.0]]))
    >>> step.sums.tolist(), step.counts.tolist(), step.inertia.item()
    ([[0.0], [8.0]], [1.0, 2.0], 3.0)
    """
    check_points(x)
    check_centers(centers, x)
    if sample_weight is not None:
        check_vector(sample_weight, x.shape[0], "sample_weight", x, "rows")
    if previous_labels is not None:
        check_labels(previous_labels, x.shape[0], "previous_labels", x)
    if check_finite:
        _checks.check_finite(("x", x), ("centers", centers), ("sample_weight", sample_weight))
    name = choose("kmeans_step", x, backend)
    precision = resolve_precision(precision, name, x)
    x, centers = x.detach(), centers.detach()
    sample_weight = None if sample_weight is None else sample_weight.detach()
    if name == "reference":
        return KMeansStep(*kmeans_step_reference(x, centers, sample_weight, previous_labels))
    return KMeansStep(*custom_ops.kmeans_step(name, x, centers, sample_weight, previous_labels, precision))


def center_update(sums: Tensor, counts: Tensor, centers: Tensor) -> Tensor:
    """New centers from the sums of :func:`kmeans_step`: the mean of each cluster.

    Same as ``torch.where(counts[:, None] > 0, sums / counts[:, None], centers)``, without its 0 / 0.

    Parameters
    ----------
    sums : Tensor of shape (n_clusters, n_features), float64
    counts : Tensor of shape (n_clusters,), float64
    centers : Tensor of shape (n_clusters, n_features)
        What an empty cluster keeps.

    Returns
    -------
    centers : Tensor of shape (n_clusters, n_features), dtype of centers
        A new tensor.

    Examples
    --------
    >>> import torch
    >>> center_update(torch.tensor([[6.0], [0.0]]), torch.tensor([2.0, 0.0]), torch.tensor([[0.0], [9.0]]))
    tensor([[3.],
            [9.]])
    """
    _check_sums(sums, counts, centers)
    return center_update_torch(sums, counts, centers.detach())


def repair_empty(
    x: Tensor,
    centers: Tensor,
    labels: Tensor,
    sums: Tensor,
    counts: Tensor,
    *,
    sample_weight: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Give each empty cluster the row that lies farthest from its own center.

    The i-th empty cluster takes the i-th farthest row (of equals the lowest index), which leaves the sums of
    the cluster that it came from. Rows that lie on their center and the last row of a cluster stay, so that
    data with fewer distinct rows than clusters keep some clusters empty and nothing loops. Without an empty
    cluster nothing changes.

    Parameters
    ----------
    x : Tensor of shape (n_samples, n_features)
    centers : Tensor of shape (n_clusters, n_features)
        Centers that the labels refer to.
    labels, sums, counts
        As returned by :func:`kmeans_step` for these rows and centers.
    sample_weight : Tensor of shape (n_samples,), optional
        The weights of that step.

    Returns
    -------
    sums, counts : Tensor
        New ones, for :func:`center_update`.

    Notes
    -----
    Plain torch on any device. It sorts the rows by distance, so call it only where ``counts`` has a zero.
    Memory: the differences of 2,048 rows, and as many rows as there are clusters; nothing for each row.

    Examples
    --------
    >>> import torch
    >>> x, centers = torch.tensor([[0.0], [1.0], [5.0]]), torch.tensor([[1.0], [90.0]])
    >>> step = kmeans_step(x, centers)
    >>> sums, counts = repair_empty(x, centers, step.labels, step.sums, step.counts)
    >>> center_update(sums, counts, centers)
    tensor([[0.5000],
            [5.0000]])
    """
    check_points(x)
    check_centers(centers, x)
    check_labels(labels, x.shape[0], "labels", x)
    _check_sums(sums, counts, centers)
    if sample_weight is not None:
        check_vector(sample_weight, x.shape[0], "sample_weight", x, "rows")
    return repair_empty_torch(x.detach(), centers.detach(), labels, sums, counts, sample_weight)


def _check_sums(sums: Tensor, counts: Tensor, centers: Tensor) -> None:
    check_points(centers, "centers")
    check_vector(counts, centers.shape[0], "counts", centers, "clusters")
    check_points(sums, "sums")
    if sums.shape != centers.shape:
        raise ValueError(f"sums must have the shape of centers, {tuple(centers.shape)}, got {tuple(sums.shape)}")
