"""CPU kernels over all pairs of rows of a clustering: launchers."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdc.kernels._lanes import padded
from fastdc.kernels._parallel import block_rows, distances_ns, n_workers, run_blocks
from fastdc.kernels._precision import BY_DIFFERENCES, working_dtype
from fastdc.kernels._rows import Rows, as_array, empty, numpy_dtype
from fastdc.kernels._simd import prepare
from fastdc.kernels._tile import make_scratch, prepare_centers
from fastdc.kernels._vectors import LANES
from fastdc.kernels.pairwise import numba_tiles as tiles
from fastdc.kernels.pairwise.numba_chunks import CHUNK, make_work, prepare_points

LARGEST_BLOCK = 512  # rows of a block that meets all points: a block takes long enough


def silhouette_coefficients(x: Tensor, labels: Tensor, n_clusters: int) -> Tensor:
    """s (n,) in the working dtype."""
    dtype = working_dtype(x)
    element = numpy_dtype(dtype)
    prepare(element)
    n, d = x.shape
    ordered, order = labels.sort(stable=True)
    points = as_array(x.detach()[order], element)
    sums, counts = _cluster_sums(Rows(torch.from_numpy(points), element), ordered.numpy(), n_clusters, d)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    means = np.zeros((n_clusters, padded(d)), element)
    if d > BY_DIFFERENCES:
        centers = sums / np.maximum(counts, 1)[:, None]
        means[:, :d] = np.where(np.isfinite(centers), centers, 0)
    block = block_rows(n, largest=LARGEST_BLOCK, row_ns=distances_ns(d, n))
    works = [make_work(d, element) for _ in range(n_workers(-(-n // block)))]
    chunks = [(np.empty((CHUNK, d), element), np.empty(CHUNK, element)) for _ in works]
    found = np.empty(n, element)

    def work(worker: int, start: int, stop: int) -> None:
        tiles.silhouette_block(
            points, ordered.numpy(), offsets, means, *chunks[worker], works[worker], start, stop, found
        )

    run_blocks(n, block, work)
    s = empty((n,), element)
    s[order] = torch.from_numpy(found)
    return s


def hardest_pairs(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """positive, negative (n,) int64, and their distances in the working dtype."""
    element = numpy_dtype(working_dtype(x))
    n, d = x.shape
    points = prepare_points(as_array(x, element))
    numbers = compact(labels)
    block = block_rows(n, largest=LARGEST_BLOCK, row_ns=distances_ns(d, n))
    works = [make_work(d, element) for _ in range(n_workers(-(-n // block)))]
    found = (
        empty((n,), np.dtype(np.int64)),
        empty((n,), np.dtype(np.int64)),
        empty((n,), element),
        empty((n,), element),
    )

    def work(worker: int, start: int, stop: int) -> None:
        tiles.hardest_block(points, numbers, works[worker], start, stop, *(t.numpy() for t in found))

    run_blocks(n, block, work)
    return found


def compact(labels: Tensor) -> NDArray:
    """Labels as int32, numbered anew."""
    return labels.unique(return_inverse=True)[1].to(torch.int32).numpy()


def center_distances(x: Tensor, centers: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Distances (n,) to the own center and the nearest other one, in the working dtype."""
    element = numpy_dtype(working_dtype(x, centers))
    rows, prepared = Rows(x, element), prepare_centers(as_array(centers, element))
    (n, d), k = x.shape, centers.shape[0]
    block = block_rows(n, row_ns=distances_ns(d, k))
    works = [
        (make_scratch(k, d, element), np.empty((k, LANES), element), np.empty(LANES, element))
        for _ in range(n_workers(-(-n // block)))
    ]
    own, other, numbers = empty((n,), element), empty((n,), element), labels.numpy()

    def work(worker: int, start: int, stop: int) -> None:
        here = slice(start, stop)
        tiles.center_distances_block(
            rows[here], numbers[here], prepared, *works[worker], own.numpy()[here], other.numpy()[here]
        )

    run_blocks(n, block, work)
    return own, other


def cluster_dispersion(x: Tensor, labels: Tensor, n_clusters: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """counts (k,) int64, centers (k, d), sums (k,) of distances and of squares: float64."""
    element = numpy_dtype(working_dtype(x))
    rows, numbers = Rows(x, element), labels.numpy()
    n, d = x.shape
    sums, counts = _cluster_sums(rows, numbers, n_clusters, d)
    centers = sums / np.maximum(counts, 1)[:, None]
    block = block_rows(n, row_ns=d)
    partial = [np.empty((n_clusters, 2)) for _ in range(n_workers(-(-n // block)))]
    spread = np.zeros((n_clusters, 2))

    def work(worker: int, start: int, stop: int) -> None:
        tiles.spread_block(rows[start:stop], numbers[start:stop], centers, partial[worker])

    def commit(worker: int) -> None:
        spread[:] += partial[worker]

    run_blocks(n, block, work, commit)
    found = (counts, centers, np.ascontiguousarray(spread[:, 0]), np.ascontiguousarray(spread[:, 1]))
    counts_found, centers_found, distances, squares = (torch.from_numpy(a) for a in found)
    return counts_found, centers_found, distances, squares


def _cluster_sums(rows: Rows, labels: NDArray, n_clusters: int, n_features: int) -> tuple[NDArray, NDArray]:
    """Float64 sums (k, d) of the rows of each label, and their numbers (k,)."""
    n = labels.size
    block = block_rows(n, row_ns=n_features)
    shape = (n_clusters, n_features)
    partial = [(np.empty(shape), np.empty(n_clusters, np.int64)) for _ in range(n_workers(-(-n // block)))]
    sums, counts = np.zeros(shape), np.zeros(n_clusters, np.int64)

    def work(worker: int, start: int, stop: int) -> None:
        tiles.sums_block(rows[start:stop], labels[start:stop], *partial[worker])

    def commit(worker: int) -> None:
        sums[:] += partial[worker][0]
        counts[:] += partial[worker][1]

    run_blocks(n, block, work, commit)
    return sums, counts
