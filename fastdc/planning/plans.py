"""Plans: what they hold, how they are made, and what is said where a run cannot fit."""

from __future__ import annotations

from dataclasses import MISSING, fields, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from fastdc._input import read_count
from fastdc.data import RowSource, as_row_source
from fastdc.planning import timing
from fastdc.planning.centers import KMeansWork, MiniBatchWork, MixtureWork
from fastdc.planning.graphs import DBSCANWork, SpectralWork
from fastdc.planning.memory import Shape, free_bytes, readable
from fastdc.planning.neighbors import NeighborsWork
from fastdc.planning.work import Work

METHODS: dict[str, type[Work]] = {
    work.name: work for work in (KMeansWork, MiniBatchWork, MixtureWork, SpectralWork, DBSCANWork, NeighborsWork)
}
FOUND_OUT = ("streamed", "n_components", "n_queries", "search_memory")  # fields that are no arguments of plan


class Plan(NamedTuple):
    """What a run will take on the CPU with torch's threads.

    ``peak_bytes`` are anonymous memory beside what the process, and an array that is given to it, hold already.
    ``flops_per_iteration`` and ``seconds_per_iteration`` are of a pass over all rows that makes all distances: that
    bounds will skip some is not foreseen. Where not ``iterates``, they are of the whole run. ``n_clusters`` is None
    for methods that are not told. ``gemm_gflops`` and ``copy_gbs`` are what this machine reaches.
    """

    method: str
    n_samples: int
    n_features: int
    n_clusters: int | None
    streamed: bool
    iterates: bool
    peak_bytes: int
    available_bytes: int
    flops_per_iteration: float
    seconds_per_iteration: float
    gemm_gflops: float
    copy_gbs: float


def plan(
    X: Any,
    method: str = "kmeans",
    n_clusters: int | None = None,
    *,
    streamed: bool | None = None,
    memory: int | None = None,
    **options: Any,
) -> Plan:
    """Bytes, operations and seconds of a run on the CPU, before it starts.

    Parameters
    ----------
    X : array-like, path or RowSource of shape (n_samples, n_features)
    method : {"kmeans", "minibatch", "gmm", "spectral", "dbscan", "knn"}
        "knn" is :func:`fastdc.neighbors.save_knn`.
    n_clusters : int, optional
        8 for methods that must be told; the others refuse it.
    streamed : bool, optional
        Whether X is read a block at a time, as ``KMeans`` reads row sources; None says yes for all but arrays and
        tensors where the method can.
    memory : int, optional
        Bytes that the run may add; None is what is free. An exact "knn" reads as much of its points at a time as
        fits; None is then 1 GB, as in ``save_knn``.
    **options
        ``batch_size`` of "minibatch"; ``covariance_type`` of "gmm"; ``n_neighbors`` and ``metric`` of "spectral" and
        "knn"; ``algorithm`` of "knn"; ``eps`` and ``min_samples`` of "dbscan", which needs them, and its ``metric``.

    Returns
    -------
    Plan

    Raises
    ------
    MemoryError
        If the run would take more than ``memory``: with the bytes that it needs, and what would fit.
    ValueError, TypeError
        For bad arguments; for the algorithm "hnsw" of "knn", whose seconds cannot be told from a small trial.

    Notes
    -----
    Takes seconds: a product of matrices, a copy, and the method's own kernel on some of the rows. Bytes are counted
    from what the code allocates, not measured. Of a row source at most five blocks are read by k-means: a disk that
    is slower further on is not foreseen.

    Those of "knn" by lists are of 32 lists around each; data of many neighbours alike need more for the same recall.
    Seconds of "spectral", "dbscan" and "knn" are extrapolations. The method runs on more and more of the rows, up to
    about a second; what it takes for all follows from the last three times, as a linear part and one that grows with
    the pairs. Rows drawn by chance lie farther apart than all rows do. So spectral clustering may find a graph in
    pieces, which need no eigenvectors, where that of all rows hangs together: it then takes twice the planned bytes.

    Examples
    --------
    >>> from fastdc.planning import plan
    >>> found = plan(np.zeros((1000, 8), np.float32) + np.arange(1000)[:, None], "kmeans", 10)
    >>> found.flops_per_iteration
    160000.0
    """
    is_array = isinstance(X, (np.ndarray, torch.Tensor, list))
    search_memory = memory if method == NeighborsWork.name else None
    work = make_work(method, **_with(options, n_clusters=n_clusters, search_memory=search_memory))
    rows = as_row_source(X)
    shape = Shape.of(rows)
    work = replace(work, streamed=(work.can_stream(shape) and not is_array) if streamed is None else streamed)
    available = require_fit(work, shape, memory)
    work = work.look_at(rows)
    return Plan(
        method,
        shape.n,
        shape.d,
        getattr(work, "n_clusters", None),
        work.streamed,
        work.iterates,
        work.bytes(shape),
        available,
        work.flops(shape),
        work.seconds(rows),
        *timing.measure_machine(),
    )


def check_fits(
    rows: RowSource, method: str, n_clusters: int | None = None, *, memory: int | None = None, **options: Any
) -> int:
    """The bytes that a run over a row source will add at its peak; MemoryError where they are not free.

    ``options`` are those of :func:`plan`; of "knn" also the ``search_memory`` that it is told to keep to, which
    ``memory`` is not here, and ``n_queries``.
    """
    work, shape = make_work(method, **_with(options, n_clusters=n_clusters)), Shape.of(rows)
    work = replace(work, streamed=work.can_stream(shape))
    require_fit(work, shape, memory)
    return work.bytes(shape)


def make_work(method: str, **options: Any) -> Work:
    """The record of a method with its arguments.

    Raises
    ------
    ValueError
        If there is no such method, it does not take one of the options, or it needs one that is missing.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {tuple(METHODS)}, got {method!r}")
    for option in options:
        takers = [name for name, work in METHODS.items() if option in _fields(work)]
        if not takers:
            raise TypeError(f"there is no option {option!r}; method {method!r} takes {', '.join(options_of(method))}")
        if method not in takers:
            raise ValueError(f"{option} is for method {', '.join(takers)}, got method {method!r}")
    missing = [name for name, default in _fields(METHODS[method]).items() if default is MISSING and name not in options]
    if missing:
        raise ValueError(f"method {method!r} needs {' and '.join(missing)}")
    return METHODS[method](**options)


def _with(options: dict[str, Any], **more: Any) -> dict[str, Any]:
    return options | {name: value for name, value in more.items() if value is not None}


def options_of(method: str) -> list[str]:
    """Names of the arguments of a method."""
    return [name for name in _fields(METHODS[method]) if name not in FOUND_OUT]


def _fields(work: type[Work]) -> dict[str, Any]:
    """Names and defaults."""
    return {field.name: field.default for field in fields(work)}


def require_fit(work: Work, shape: Shape, memory: int | None) -> int:
    """The bytes that may be used; MemoryError where these are fewer than a run adds, with what would fit instead."""
    available = free_bytes() if memory is None else read_count(memory, "memory")
    work.check(shape)
    needed = work.bytes(shape)
    if needed <= available:
        return available
    advice = "; or ".join(work.instead(shape, available)) or "more memory or fewer rows"
    clusters = f" and {work.n_clusters:,} clusters" if hasattr(work, "n_clusters") else ""
    raise MemoryError(
        f"{work.name} of {shape.n:,} rows of {shape.d:,} features{clusters} needs {readable(needed)}, "
        f"{readable(available)} may be used; what would fit: {advice}"
    )
