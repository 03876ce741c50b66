"""Points within a radius counted and joined: the docstrings are the specification."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdc.kernels._backend import choose
from fastdc.kernels._checks import check_points, check_positive, check_vector
from fastdc.kernels._copies import ROWS_AT_ONCE, copy_rows, copy_tensor
from fastdc.kernels._precision import working_dtype
from fastdc.kernels.neighbors.points import METRICS, check_metric, is_finite_row, metric_rows


class DensityClusters(NamedTuple):
    """Which rows are dense, and the cluster of each."""

    labels: Tensor
    is_core: Tensor


def radius_counts(
    x: Tensor,
    radius: float,
    sample_weight: Tensor | None = None,
    metric: str = "euclidean",
    *,
    backend: str | None = None,
) -> Tensor:
    r"""How many points lie within a radius of each, itself among them.

    Same as, without the (n_samples, n_samples) matrix and without a list of pairs::

        within = torch.cdist(x, x) <= radius
        counts = within.sum(dim=1)                     # sample_weight: within.double() @ sample_weight.double()

    Parameters
    ----------
    x : Tensor of shape (n_samples, n_features), float32 | float64 | float16 | bfloat16
        Points. Any strides.
    radius : float
        Finite, above 0. Points at this very distance are within, as float64 has it.
    sample_weight : Tensor of shape (n_samples,), optional
        Of any sign.
    metric : {"euclidean", "cosine"}
        Under cosine a row of zeros is at distance 1 from every other.
    backend : {None, "reference", "numba", "triton"}
        None chooses by device. "triton" is the kernel of ``radius_neighbors``, a block of rows at a time.

    Returns
    -------
    counts : Tensor of shape (n_samples,), int64; with ``sample_weight`` float64

    Notes
    -----
    Gradients: none; x is detached.
    Rows that are not finite are near nobody, themselves included.
    Memory on CPUs: two copies of x (three under cosine), 24 bytes a row, a tile for each thread. On GPUs up to 2^26
    pairs of a block.
    Time: points are sorted into boxes of 64, and boxes that lie apart are skipped. In few dimensions, or with
    clusters that lie apart, that leaves a small share of all pairs; in many dimensions all pairs are measured.
    Precision: exact. Tiles of distances by differences decide where they can, float64 where they cannot.
    Determinism: same bits for any number of threads.

    Examples
    --------
    >>> import torch
    >>> radius_counts(torch.tensor([[0.0], [1.0], [3.0]]), 2.0)
    tensor([2, 3, 2])
    """
    x, weight, search = _begin(x, radius, sample_weight, metric, backend, "radius_counts")
    return _scatter(search.counts(weight), search.finite, 0)


def density_clusters(
    x: Tensor,
    radius: float,
    min_samples: float,
    sample_weight: Tensor | None = None,
    metric: str = "euclidean",
    *,
    backend: str | None = None,
) -> DensityClusters:
    r"""DBSCAN: dense points that hang together, and the points at their borders.

    A point is a *core* where at least ``min_samples`` points lie within the radius, itself among them. Clusters are
    the connected components of cores within the radius of each other, numbered in the order of their first core.
    Another point within the radius of a core is in the first such cluster; a point within the radius of none is noise.
    Same as, without the (n_samples, n_samples) matrices and without a list of pairs::

        within = torch.cdist(x, x) <= radius
        is_core = within.sum(dim=1) >= min_samples
        _, component = scipy.sparse.csgraph.connected_components(within[is_core][:, is_core])
        near = torch.where(within[:, is_core], component, n_samples).amin(dim=1)
        labels = torch.where(near < n_samples, near, -1)

    Parameters
    ----------
    x, radius, sample_weight, metric, backend
        As in :func:`radius_counts`.
    min_samples : float
        With ``sample_weight`` the sum of weights that makes a core.

    Returns
    -------
    labels : Tensor of shape (n_samples,), int64
        -1 for noise.
    is_core : Tensor of shape (n_samples,), bool

    Notes
    -----
    Gradients, precision, determinism, rows that are not finite (noise): as in :func:`radius_counts`.
    Memory: as there, and 33 bytes a row.

    References
    ----------
    Ester, Kriegel, Sander, Xu. A density-based algorithm for discovering clusters in large spatial databases with
    noise. KDD 1996.

    Examples
    --------
    >>> import torch
    >>> x = torch.tensor([[9.0], [1.0], [2.0], [3.0], [7.0], [8.0]])
    >>> density_clusters(x, 1.0, 3)
    DensityClusters(labels=tensor([1, 0, 0, 0, 1, 1]), is_core=tensor([False, False,  True, False, False,  True]))
    """
    x, weight, search = _begin(x, radius, sample_weight, metric, backend, "density_clusters")
    is_core = search.counts(weight) >= min_samples
    return DensityClusters(
        _scatter(search.clusters(is_core), search.finite, -1), _scatter(is_core, search.finite, False)
    )


class _Found(NamedTuple):
    """A search among finite rows, and which rows these are; None where all are."""

    counts: Any
    clusters: Any
    finite: Tensor | None


def _begin(
    x: Tensor, radius: float, sample_weight: Tensor | None, metric: str, backend: str | None, op: str
) -> tuple[Tensor, Tensor | None, _Found]:
    check_points(x)
    check_metric(metric, METRICS[:2])
    radius = check_positive(radius, "radius")
    weight = None
    if sample_weight is not None:
        check_vector(sample_weight, x.shape[0], "sample_weight", x, "rows")
        weight = sample_weight.detach()
    name = choose(op, x, backend)
    x = x.detach().to(working_dtype(x))
    is_finite = is_finite_row(x)
    finite = None if bool(is_finite.all()) else is_finite
    if finite is not None:
        x, weight = copy_rows(x, finite), None if weight is None else weight[finite]
    search = _search(name, x, radius, metric)
    return x, weight, _Found(search.counts, search.clusters, finite)


def _search(name: str, x: Tensor, radius: float, metric: str) -> Any:
    """The two passes of a backend over finite rows."""
    if name == "triton":
        from fastdc.kernels.density.pairs import PairSearch

        return PairSearch(x, radius, metric, name)
    rows, limit = _as_euclidean(x, radius, metric)
    if name == "reference":
        from fastdc.kernels.density.reference import ReferenceSearch

        return ReferenceSearch(rows, limit)
    from fastdc.kernels.density.numba_kernel import Search

    return Search(rows, limit)


def _as_euclidean(x: Tensor, radius: float, metric: str) -> tuple[Tensor, float]:
    """Rows, and the squared distance up to which they are near each other.

    Of unit vectors it is twice 1 - cos. Rows of zeros are at distance 1: near all from a radius of 1 on, which their
    distances to unit vectors say as they are; below it near nobody, so that a further feature sets each apart.
    """
    if metric == "euclidean":
        return x, min(radius * radius, float(torch.finfo(torch.float64).max))
    rows = metric_rows(x, metric, x.dtype)
    is_zero = torch.cat([(part == 0).all(dim=1) for part in rows.split(ROWS_AT_ONCE)])
    if radius >= 1.0 or not bool(is_zero.any()):
        return rows, 2.0 * radius
    n, d = rows.shape
    apart = copy_tensor((n, d + 1), rows.dtype, rows.device)
    apart[:, :d] = rows
    apart[:, d] = torch.where(is_zero, 2.0 * torch.arange(1, n + 1, dtype=x.dtype, device=x.device), 0.0)
    return apart, 2.0 * radius


def _scatter(values: Tensor, finite: Tensor | None, rest: float) -> Tensor:
    if finite is None:
        return values
    result = torch.full(finite.shape, rest, dtype=values.dtype, device=values.device)
    result[finite] = values
    return result
