"""Compiled blocks of ``radius_neighbors`` on CPUs: as ``numba_tiles.py``, with bounds that stay as they are."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastdc.kernels._math import lowest_bit
from fastdc.kernels._numba import jit
from fastdc.kernels._simd import gemm
from fastdc.kernels._vectors import LANES
from fastdc.kernels.neighbors.numba_simd import above
from fastdc.kernels.neighbors.numba_tiles import EUCLIDEAN, NEVER, TILE, bound_of, fill_lanes, key_of


class Space(NamedTuple):
    """Pairs found, in the order of the points for each query."""

    queries: NDArray  # (size,) int32, counted from the first of the block
    points: NDArray  # (size,) int64
    keys: NDArray  # (size,) float64


def make_space(size: int) -> Space:
    return Space(np.empty(size, np.int32), np.empty(size, np.int64), np.empty(size))


@jit
def radius_block(queries, start, stop, points, is_self, limit, limits, scratch, space, counts):
    """Pairs of the queries start … stop with a key of at most ``limit``; how many there are.

    Pairs beyond the space are counted and not kept. ``counts`` (stop - start,) are those of each query.
    """
    n_features = queries.factors.shape[1]
    n = points.factors.shape[0]
    columns = scratch.columns[:n_features]
    dtype = scratch.bounds.dtype.type
    counts[:] = 0
    total = 0
    for first in range(start, stop, LANES):
        last = min(first + LANES, stop)
        fill_lanes(queries, first, last, scratch)
        for i in range(first, last):
            offset = scratch.offsets[i - first]
            if offset < dtype(NEVER):
                scratch.bounds[i - first] = bound_of(limit, offset, queries.norms[i], limits)
        for top in range(0, n, TILE):
            count = min(TILE, n - top)
            gemm(points.factors[top : top + count], columns, scratch.tile[:count], False)
            for t in range(count):
                j = top + t
                offset = points.offsets[j]
                rest = above(scratch.tile, t * LANES, scratch.bounds, scratch.offsets, offset, dtype(NEVER))
                while rest != 0:
                    lane = lowest_bit(rest)
                    rest &= rest - np.uint64(1)
                    i = first + lane
                    if is_self and i == j:
                        continue
                    key = key_of(limits.metric, queries, i, points, j)
                    if key <= limit:
                        if total < space.keys.size:
                            space.queries[total], space.points[total], space.keys[total] = i - start, j, key
                        counts[i - start] += 1
                        total += 1
    return total


@jit
def by_row(space, total, counts, metric, indices, distances):
    """The pairs sorted by query: a row's points rise, as they did before."""
    places = np.zeros(counts.size, np.int64)
    for i in range(1, counts.size):
        places[i] = places[i - 1] + counts[i - 1]
    for pair in range(total):
        row = space.queries[pair]
        place = places[row]
        places[row] += 1
        key = space.keys[pair]
        indices[place] = space.points[pair]
        distances[place] = np.sqrt(key) if metric == EUCLIDEAN else key
