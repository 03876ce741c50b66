"""Plans: what they hold, how they are made, and what is said where a run cannot fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from fastdc._input import read_count
from fastdc.data import RowSource, as_row_source
from fastdc.planning import memory as bytes_of
from fastdc.planning.memory import Shape, free_bytes

METHODS = ("kmeans", "minibatch", "gmm")
COVARIANCES = ("diag", "spherical", "tied", "full")


class Plan(NamedTuple):
    """What a run will take on the CPU with torch's threads.

    ``peak_bytes`` are anonymous memory beside what the process, and an array that is given to it, hold already.
    ``seconds_per_iteration`` is of a pass over all rows that makes all distances: that bounds will skip some is not
    foreseen. ``gemm_gflops`` and ``copy_gbs`` are what this machine reaches.
    """

    method: str
    n_samples: int
    n_features: int
    n_clusters: int
    streamed: bool
    peak_bytes: int
    available_bytes: int
    flops_per_iteration: float
    seconds_per_iteration: float
    gemm_gflops: float
    copy_gbs: float


def plan(
    X: Any,
    method: str = "kmeans",
    n_clusters: int = 8,
    *,
    streamed: bool | None = None,
    batch_size: int = 1024,
    covariance_type: str = "diag",
    memory: int | None = None,
) -> Plan:
    """Bytes, operations and seconds of a run on the CPU, before it starts.

    Parameters
    ----------
    X : array-like, path or RowSource of shape (n_samples, n_features)
    method : {"kmeans", "minibatch", "gmm"}
    n_clusters : int
    streamed : bool, optional
        Whether ``KMeans`` reads X as a row source; None says yes for all but arrays and tensors.
    batch_size : int
        Of "minibatch".
    covariance_type : {"diag", "spherical", "tied", "full"}
        Of "gmm".
    memory : int, optional
        Bytes that the run may add; None is what is free.

    Returns
    -------
    Plan

    Raises
    ------
    MemoryError
        If the run would take more than ``memory``: with the bytes that it needs, and what would fit.
    ValueError, TypeError
        For bad arguments.

    Notes
    -----
    Takes one to four seconds: a product of matrices, a copy, and the method's own kernel on some of the rows. Bytes
    are counted, not measured; an iteration of k-means over an array that fills empty clusters takes some 40 bytes a
    row more, and 32 for each feature of 8,192 rows. Of a row source at most five blocks are read: a disk that is
    slower further on is not foreseen. Nine runs of up to 1,000,000 rows on one busy core took 5 % less to 29 % more
    seconds than planned, and of peaks of over 20 MB 26 % less to 21 % more (``bench/results/plans.jsonl``).

    Examples
    --------
    >>> from fastdc.planning import plan
    >>> found = plan(np.zeros((1000, 8), np.float32) + np.arange(1000)[:, None], "kmeans", 10)
    >>> found.flops_per_iteration
    160000.0
    """
    is_array = isinstance(X, (np.ndarray, torch.Tensor, list))
    rows = as_row_source(X)
    _check(method, rows, n_clusters, batch_size, covariance_type)
    streamed = method == "kmeans" and (not is_array if streamed is None else streamed)
    shape = Shape.of(rows, n_clusters)
    count = _counter(method, streamed, batch_size, covariance_type)
    available = free_bytes() if memory is None else read_count(memory, "memory")
    require_fit(count, shape, method, available, streamed=streamed, covariance_type=covariance_type)
    from fastdc.planning import timing

    if method == "kmeans":
        seconds = timing.kmeans_iteration(rows, n_clusters, streamed=streamed)
    elif method == "minibatch":
        seconds = timing.mini_batch_pass(rows, n_clusters, batch_size)
    else:
        seconds = timing.mixture_iteration(rows, n_clusters, covariance_type)
    flops = _flops(method, shape, covariance_type)
    machine = timing.measure_machine()
    return Plan(method, shape.n, shape.d, n_clusters, streamed, count(shape), available, flops, seconds, *machine)


def check_fits(
    rows: RowSource,
    method: str,
    n_clusters: int,
    *,
    batch_size: int = 1024,
    covariance_type: str = "diag",
    memory: int | None = None,
) -> int:
    """The bytes that a run over a row source will add at its peak; MemoryError where they are not free."""
    _check(method, rows, n_clusters, batch_size, covariance_type)
    shape, streamed = Shape.of(rows, n_clusters), method == "kmeans"
    count = _counter(method, streamed, batch_size, covariance_type)
    available = free_bytes() if memory is None else read_count(memory, "memory")
    require_fit(count, shape, method, available, streamed=streamed, covariance_type=covariance_type)
    return count(shape)


def require_fit(
    count: Callable[[Shape], int],
    shape: Shape,
    method: str,
    available: int,
    *,
    streamed: bool,
    covariance_type: str,
) -> None:
    """MemoryError where ``count`` bytes of a shape are not available, with what would fit instead."""
    needed = count(shape)
    if needed <= available:
        return
    ways = []
    if method == "kmeans" and not streamed and bytes_of.streamed_kmeans_bytes(shape) <= available:
        ways.append("a row source (fastdc.data.as_row_source), which is read a block at a time")
    if method != "kmeans" and bytes_of.streamed_kmeans_bytes(shape) <= available:
        ways.append("method kmeans, which reads rows a block at a time")
    if method != "kmeans" and bytes_of.whole_bytes(shape) > 0:
        ways.append("the rows as a float32 .npy file, which is mapped and not read into memory")
    if method == "gmm" and covariance_type == "full" and bytes_of.mixture_bytes(shape, "diag") <= available:
        ways.append("diagonal covariances")
    fitting = _largest_fitting(lambda k: count(shape._replace(k=k)) <= available, shape.k)
    if fitting:
        ways.append(f"at most {fitting:,} clusters")
    advice = "; or ".join(ways) if ways else "more memory or fewer rows"
    raise MemoryError(
        f"{method} of {shape.n:,} rows of {shape.d:,} features and {shape.k:,} clusters needs {readable(needed)}, "
        f"{readable(available)} may be used; what would fit: {advice}"
    )


def readable(size: float) -> str:
    """Bytes with a unit, such as 1.5 GB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" or size >= 100 else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def _counter(method: str, streamed: bool, batch_size: int, covariance_type: str) -> Callable[[Shape], int]:
    """Bytes of a shape at the peak."""
    if method == "kmeans":
        return bytes_of.streamed_kmeans_bytes if streamed else _in_memory(bytes_of.kmeans_bytes)
    if method == "minibatch":
        return _in_memory(lambda shape: bytes_of.mini_batch_bytes(shape, batch_size))
    return _in_memory(lambda shape: bytes_of.mixture_bytes(shape, covariance_type))


def _in_memory(count: Callable[[Shape], int]) -> Callable[[Shape], int]:
    return lambda shape: count(shape) + bytes_of.whole_bytes(shape)


def _flops(method: str, shape: Shape, covariance_type: str) -> float:
    """Additions and multiplications of a pass, about."""
    pairs = float(shape.n) * shape.k
    if method != "gmm":
        return 2 * pairs * shape.d
    return pairs * (3 * shape.d**2 if covariance_type == "full" else 7 * shape.d)


def _largest_fitting(fits: Callable[[int], bool], most: int) -> int:
    """The largest number from 1 to ``most`` that fits; 0 where none does."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _check(method: str, rows: RowSource, n_clusters: int, batch_size: int, covariance_type: str) -> None:
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}, got {method!r}")
    if covariance_type not in COVARIANCES:
        raise ValueError(f"covariance_type must be one of {COVARIANCES}, got {covariance_type!r}")
    read_count(n_clusters, "n_clusters", high=len(rows), high_name="n_samples")
    read_count(batch_size, "batch_size")
