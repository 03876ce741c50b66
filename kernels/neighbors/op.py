"""Nearest neighbours and neighbours within a radius: the docstrings are the specification."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdc.kernels import _checks
from fastdc.kernels._backend import choose
from fastdc.kernels._checks import check_centers, check_points, check_positive
from fastdc.kernels._precision import resolve_precision, working_dtype
from fastdc.kernels.neighbors import custom_ops
from fastdc.kernels.neighbors.choice import choose_algorithm
from fastdc.kernels.neighbors.points import METRICS, check_metric
from fastdc.kernels.neighbors.reference import knn_reference, radius_reference


class Neighbors(NamedTuple):
    """Each query's nearest points and the distances to them, nearest first."""

    distances: Tensor
    indices: Tensor


class RadiusNeighbors(NamedTuple):
    """The points near each query: those of query i at ``indptr[i]:indptr[i + 1]``, by rising index."""

    indptr: Tensor
    indices: Tensor
    distances: Tensor

    def to_scipy(self, n_points: int) -> Any:
        """A ``scipy.sparse.csr_array`` (m, n_points) of the distances; a distance of 0 is a stored entry."""
        from scipy.sparse import csr_array

        parts = tuple(part.cpu().numpy() for part in (self.distances, self.indices, self.indptr))
        return csr_array(parts, shape=(len(self.indptr) - 1, n_points))


def knn(
    x: Tensor,
    n_neighbors: int,
    queries: Tensor | None = None,
    metric: str = "euclidean",
    algorithm: str = "auto",
    *,
    check_finite: bool = False,
    backend: str | None = None,
    precision: str | None = None,
) -> Neighbors:
    r"""The nearest points of each query; without queries, of each point among all others.

    Same as, without any (n_queries, n_samples) matrix::

        pairs = (queries[:, None] - x).norm(dim=2)       # euclidean
        pairs = 1 - normalize(queries) @ normalize(x).T  # cosine
        pairs = -(queries @ x.T)                         # inner_product; distances are the products
        distances, indices = pairs.sort(dim=1, stable=True)
        distances, indices = distances[:, :n_neighbors], indices[:, :n_neighbors]

    Parameters
    ----------
    x : Tensor of shape (n_samples, n_features), float32 | float64 | float16 | bfloat16
        Points. Any strides.
    n_neighbors : int
        From 1 to n_samples, without queries to n_samples - 1.
    queries : Tensor of shape (n_queries, n_features), optional
        None asks for the neighbours of x itself; a row is then no neighbour of its own, by its index: a copy
        of it elsewhere is.
    metric : {"euclidean", "cosine", "inner_product"}
        Under cosine a row of zeros is at distance 1 from every row.
    algorithm : {"auto", "exact", "lists", "faiss", "hnsw", "ivf"}
        "exact" and "lists" are our own kernels. "lists", on CPUs and without queries, is approximate: it compares each
        point with those of the 32 lists around it, of about 64 points or more. The others are FAISS's (an optional
        package): "faiss" compares all pairs by float32 products, "hnsw" and "ivf" are approximate. "auto" takes "exact"
        up to 2^46 products of numbers (a million points of 64 features), and "lists" or "hnsw" beyond; see
        :func:`explain_algorithms`.
    check_finite : bool
        Raise ValueError where x or queries hold NaN or infinity. FAISS's algorithms always do.
    backend : {None, "reference", "numba", "triton"}
        Of "exact". None chooses by device (see ``fastdc.explain``); a name forces it or raises
        ``BackendError``.
    precision : {None, "ieee", "tf32x3", "bf16x6", "tf32", "bf16"}
        Of the products inside the GPU kernel. None is as accurate as IEEE float32. With "tf32" and "bf16" a
        farther point may be found; its distance is still exact.

    Returns
    -------
    distances : Tensor of shape (n_queries, n_neighbors), float32 (float64 where an input is)
        Rising; under inner_product the products, falling. Measured by differences in float64, whatever
        algorithm found the point.
    indices : Tensor of shape (n_queries, n_neighbors), int64
        Of equally near points the lowest index first.

    Notes
    -----
    Gradients: none; the results are detached. Differentiable distances are
    ``(queries[:, None] - x[indices]).norm(dim=2)``.
    Non-finite rows: neighbours of nobody; as queries they have the indices -1 and distances NaN. Where fewer
    points are finite than wanted, the last indices are -1 and their distances infinite.
    Memory: the results, 8 bytes more for each of them, 9 bytes a row, and a copy of x and queries (two where they
    are not contiguous in the working dtype, three under cosine); per thread 340 bytes a feature and 20 KB. Measured
    for 50,000 points of 64 features, 15 neighbours, 2 threads: 19 MB beside results of 9 MB. "lists": a copy of x and
    of the results more, and 16 bytes a row. FAISS's algorithms:
    their index, the candidates (8 bytes each), and up to 256 MB while these are measured. On GPUs the candidates too,
    12 bytes for each of up to twice as many as neighbours and at least 16, and up to 200 MB beside.
    Precision: exact on every backend: products only sort out pairs that cannot be near, by a bound on their
    rounding; what is left is decided by differences in float64, also far from the origin and among
    duplicates. Squared distances beyond float64 are infinite, and no neighbours.
    Recall: of the 10 nearest of 20,000 standard normal points "hnsw" finds 0.998 with 16 features and 0.91 with
    64, "ivf" 0.92 to 0.98 and 0.64 to 0.67 (least under inner_product). Such points have no clusters, and are
    the hardest; measure yours against "exact" for a few queries, as :func:`fastdc.neighbors.save_knn` does. "lists"
    finds 0.96 of 15 neighbours of 100,000 and of 1,000,000 points near sheets of 16 dimensions in 64.
    Determinism: "exact" and "lists" give the same bits for any number of threads. "hnsw" is built by several threads in
    no fixed order; with ``torch.use_deterministic_algorithms(True)`` one thread builds it.
    Limits: tested to 100,003 features and to every number of neighbours. On GPUs FAISS has "faiss" and "ivf", and
    finds fewer than 2,048; both take x where it lies, on the current stream (tested against a stand-in alone).

    References
    ----------
    Johnson, Douze, Jégou. Billion-scale similarity search with GPUs. IEEE Transactions on Big Data, 2019.
    Malkov, Yashunin. Efficient and robust approximate nearest neighbor search using hierarchical navigable
    small world graphs. IEEE Transactions on Pattern Analysis and Machine Intelligence, 2018.

    Examples
    --------
    >>> import torch
    >>> knn(torch.tensor([[0.0], [1.0], [3.0]]), 1)
    Neighbors(distances=tensor([[1.],
            [1.],
            [2.]]), indices=tensor([[1],
            [0],
            [1]]))
    """
    x, queries = _checked(x, queries, metric, METRICS, check_finite)
    n_neighbors = check_n_neighbors(n_neighbors, x.shape[0], queries is None)
    algorithm = choose_algorithm(x, n_neighbors, queries, algorithm, metric)
    if algorithm != "exact":
        return Neighbors(*custom_ops.knn_by(x, queries, n_neighbors, metric, algorithm))
    name = choose("knn", x, backend)
    precision = _precision(precision, name, x, queries)
    if name == "reference":
        return Neighbors(*knn_reference(x, queries, n_neighbors, metric))
    return Neighbors(*custom_ops.knn(name, x, queries, n_neighbors, metric, precision))


def radius_neighbors(
    x: Tensor,
    radius: float,
    queries: Tensor | None = None,
    metric: str = "euclidean",
    *,
    check_finite: bool = False,
    backend: str | None = None,
    precision: str | None = None,
) -> RadiusNeighbors:
    r"""All points within a radius of each query; without queries, of each point among all others.

    Same as, without any (n_queries, n_samples) matrix::

        within = torch.cdist(queries, x) <= radius
        indptr = cat([zeros(1), within.sum(dim=1).cumsum(0)])
        indices = within.nonzero()[:, 1]

    Parameters
    ----------
    x : Tensor of shape (n_samples, n_features), float32 | float64 | float16 | bfloat16
        Points. Any strides.
    radius : float
        Finite, above 0. Points at this very distance are within, as float64 has it.
    queries, check_finite, backend, precision
        As in :func:`knn`.
    metric : {"euclidean", "cosine"}

    Returns
    -------
    indptr : Tensor of shape (n_queries + 1,), int64
        Where each query's points begin, and how many pairs there are.
    indices : Tensor of shape (n_pairs,), int64
        Rising within a query.
    distances : Tensor of shape (n_pairs,), float32 (float64 where an input is)

    Notes
    -----
    Gradients: none; the results are detached.
    Memory: twice the results, what a block of queries finds (20 bytes a pair) for each thread, and copies as
    in :func:`knn`. On GPUs up to 200 MB beside.
    Precision, determinism, rows that are not finite: as in :func:`knn` with "exact".

    Examples
    --------
    >>> import torch
    >>> near = radius_neighbors(torch.tensor([[0.0], [1.0], [3.0]]), 2.0)
    >>> near.indptr.tolist(), near.indices.tolist(), near.distances.tolist()
    ([0, 1, 3, 4], [1, 0, 2, 1], [1.0, 1.0, 2.0, 2.0])
    """
    x, queries = _checked(x, queries, metric, METRICS[:2], check_finite)
    radius = check_positive(radius, "radius")
    name = choose("radius_neighbors", x, backend)
    precision = _precision(precision, name, x, queries)
    if name == "reference":
        return RadiusNeighbors(*radius_reference(x, queries, radius, metric))
    return RadiusNeighbors(*custom_ops.radius_neighbors(name, x, queries, radius, metric, precision))


def check_n_neighbors(n_neighbors: int, n_samples: int, is_self: bool) -> int:
    if isinstance(n_neighbors, bool) or not isinstance(n_neighbors, int):
        raise TypeError(f"n_neighbors must be an int, got {n_neighbors!r}")
    most = n_samples - is_self
    if not 1 <= n_neighbors <= most:
        others = "the other rows of x" if is_self else "the rows of x"
        raise ValueError(f"n_neighbors must be from 1 to {most}, the number of {others}, got {n_neighbors}")
    return n_neighbors


def _precision(precision: str | None, name: str, x: Tensor, queries: Tensor | None) -> str:
    if queries is not None and working_dtype(queries) == torch.float64:
        x = queries
    return resolve_precision(precision, name, x)


def _checked(
    x: Tensor, queries: Tensor | None, metric: str, metrics: tuple[str, ...], check_finite: bool
) -> tuple[Tensor, Tensor | None]:
    check_points(x)
    if queries is not None:
        check_centers(queries, x, "queries")
    check_metric(metric, metrics)
    if check_finite:
        _checks.check_finite(("x", x), ("queries", queries))
    return x.detach(), None if queries is None else queries.detach()
