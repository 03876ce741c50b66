"""Compiled blocks of the CPU kernels: the nearest points of 64 queries at a time.

Half a squared distance is |x|^2/2 + |y|^2/2 - x.y, so that a pair may be near only where the product exceeds the
sum of an *offset* of one row, half its squared norm, and a *bound* of the other, which falls to what its
neighbours so far leave open. Rounding moves products by up to ``error`` times the norms involved; bounds are
lower by as much. What passes is measured by differences in float64 and decides by that alone: products only
ever spare work. Factors are the rows shifted by their mean and scaled by a power of two to numbers of at most
one, so that nothing overflows.

Neighbours of a row are a heap, the farthest first, ordered by key and then index.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastdc.kernels._lanes import load_columns, make_corner, padded
from fastdc.kernels._lengths import sq_length
from fastdc.kernels._math import lowest_bit
from fastdc.kernels._numba import jit
from fastdc.kernels._simd import gemm
from fastdc.kernels._vectors import LANES
from fastdc.kernels.neighbors.numba_simd import above

TILE = 60  # points of a tile, a multiple of gemm's rows: with 64 queries it takes 15 KB
EUCLIDEAN, COSINE, INNER_PRODUCT = range(3)
NEVER, NOBODY = 1e37, 1e38  # a bound that no product exceeds, and an offset that keeps a row out
NO_INDEX = np.iinfo(np.int64).max  # of a place in a heap that is still free


class Side(NamedTuple):
    """Queries or points as the tiles want them."""

    raw: NDArray  # (n, d) rows, of length one under cosine
    factors: NDArray  # (n, d): (raw - shift) scale; zeros where a row is not finite
    offsets: NDArray  # (n,) half the squared norms of the factors; 1/2 under cosine, 0 for products
    norms: NDArray  # (n,) of the factors
    is_zero: NDArray  # (n,) whether all of a row is zero; under other metrics than cosine empty


class Limits(NamedTuple):
    """What bounds are made of."""

    metric: int
    scale: float  # power of two
    error: float  # a product's rounding error is below this times the norms involved
    reach: float  # the largest norm of a point
    tiny: float  # where numbers underflow


class Best(NamedTuple):
    """The nearest points of each query so far."""

    keys: NDArray  # (m, n_neighbors) float64
    indices: NDArray  # (m, n_neighbors) int64
    bounds: NDArray  # (m,)


class Scratch(NamedTuple):
    """What one worker owns."""

    columns: NDArray  # (d padded to 16, 64) factors of queries, one a lane
    corner: NDArray  # (16, 16)
    zeros: NDArray  # (d padded to 16,)
    tile: NDArray  # (TILE, 64) products
    bounds: NDArray  # (64,)
    offsets: NDArray  # (64,)


def make_scratch(n_features: int, dtype: np.dtype) -> Scratch:
    return Scratch(
        columns=np.empty((padded(n_features), LANES), dtype),
        corner=make_corner(dtype),
        zeros=np.zeros(padded(n_features), dtype),
        tile=np.empty((TILE, LANES), dtype),
        bounds=np.empty(LANES, dtype),
        offsets=np.empty(LANES, dtype),
    )


@jit
def prepare_block(raw, shift, scale, metric, factors, offsets, norms, is_zero):
    """Factors, offsets and norms of rows raw (m, d). ``shift`` (d,) is float64."""
    m, n_features = raw.shape
    dtype = factors.dtype.type
    for i in range(m):
        for d in range(n_features):
            factors[i, d] = dtype((np.float64(raw[i, d]) - shift[d]) * scale)
        sq_norm = sq_length(factors[i])
        if not sq_length(raw[i]) < np.inf and not _is_finite(raw[i]):
            factors[i] = dtype(0)
            offsets[i], norms[i] = dtype(NOBODY), dtype(0)
        elif metric == COSINE:
            offsets[i], norms[i] = dtype(0.5), dtype(1)
            is_zero[i] = sq_norm == 0.0
        else:
            offsets[i] = dtype(0.5 * sq_norm) if metric == EUCLIDEAN else dtype(0)
            norms[i] = dtype(np.sqrt(sq_norm))


@jit(inner=True)
def _is_finite(row):
    for d in range(row.size):
        if not np.isfinite(row[d]):
            return False
    return True


@jit(inline=True, reassociate=True)
def _sq_distance(a, i, b, j):
    """By differences in float64, where differences of float32 numbers are exact."""
    total = 0.0
    for d in range(a.shape[1]):
        difference = np.float64(a[i, d]) - np.float64(b[j, d])
        total += difference * difference
    return total


@jit(inline=True, reassociate=True)
def _product(a, i, b, j):
    total = 0.0
    for d in range(a.shape[1]):
        total += np.float64(a[i, d]) * np.float64(b[j, d])
    return total


@jit(inline=True)
def key_of(metric, queries, i, points, j):
    """Key of query i and point j. Whole arrays come in: a view of a row would be counted, at some cost."""
    if metric == INNER_PRODUCT:
        return -_product(queries.raw, i, points.raw, j)
    sq_dist = _sq_distance(queries.raw, i, points.raw, j)
    if metric == EUCLIDEAN:
        return sq_dist
    return 1.0 if queries.is_zero[i] or points.is_zero[j] else 0.5 * sq_dist


@jit(inline=True)
def bound_of(key, offset, norm, limits):
    """What a product must exceed, less the other row's offset, for a key of at most ``key``."""
    if limits.metric == INNER_PRODUCT:
        return -key * limits.scale * limits.scale - limits.error * norm * limits.reach - limits.tiny
    distance = np.sqrt(2.0 * key) if limits.metric == COSINE else np.sqrt(key) * limits.scale
    farthest = norm + distance  # the norm of a row so near is at most this, which bounds its product's error
    return offset - 0.5 * distance * distance - limits.error * (norm * norm + farthest * farthest) - limits.tiny


@jit
def open_bounds(offsets, bounds):
    """Bounds of rows that have no neighbours yet."""
    for i in range(offsets.size):
        bounds[i] = NEVER if offsets[i] == bounds.dtype.type(NOBODY) else -NEVER


@jit(inline=True)
def _sift(key, j, keys, indices, i, size):
    """Put (key, j) in the place of the root of a heap, the first ``size`` places of row i."""
    place = 0
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        right = child + 1
        if right < size and _is_farther(keys[i, right], indices[i, right], keys[i, child], indices[i, child]):
            child = right
        if _is_farther(key, j, keys[i, child], indices[i, child]):
            break
        keys[i, place], indices[i, place] = keys[i, child], indices[i, child]
        place = child
    keys[i, place], indices[i, place] = key, j


@jit(inline=True)
def _is_farther(key, j, other_key, other):
    return key > other_key or (key == other_key and j > other)


@jit(inline=True)
def _offer(key, j, best, i):
    """Point j into the heap of query i. Whether its farthest place may have changed."""
    if not (key < np.inf and _is_farther(best.keys[i, 0], best.indices[i, 0], key, j)):
        return False
    _sift(key, j, best.keys, best.indices, i, best.keys.shape[1])
    return best.keys[i, 0] < np.inf


@jit(inner=True)
def fill_lanes(side, first, stop, scratch):
    """The queries first … stop, 64 at most, into lanes; nothing is above the bounds."""
    load_columns(side.factors[first:stop], scratch.zeros, scratch.columns, scratch.corner)
    for lane in range(LANES):
        i = first + lane
        scratch.bounds[lane] = NEVER
        scratch.offsets[lane] = side.offsets[i] if i < stop else NOBODY


@jit
def join_blocks(queries, q_start, q_stop, points, p_start, p_stop, is_self, mutual, limits, best, scratch):
    """Offer the points of one block to the queries of another; if ``mutual``, the queries to the points too."""
    n_features = queries.factors.shape[1]
    columns = scratch.columns[:n_features]
    dtype = scratch.bounds.dtype.type
    for first in range(q_start, q_stop, LANES):
        stop = min(first + LANES, q_stop)
        fill_lanes(queries, first, stop, scratch)
        for i in range(first, stop):
            scratch.bounds[i - first] = best.bounds[i]
        for top in range(p_start, p_stop, TILE):
            count = min(TILE, p_stop - top)
            gemm(points.factors[top : top + count], columns, scratch.tile[:count], False)
            for t in range(count):
                j = top + t
                bound = best.bounds[j] if mutual else dtype(NEVER)
                rest = above(scratch.tile, t * LANES, scratch.bounds, scratch.offsets, points.offsets[j], bound)
                while rest != 0:
                    lane = lowest_bit(rest)
                    rest &= rest - np.uint64(1)
                    if not (is_self and first + lane == j):
                        _take(queries, first, lane, points, j, scratch.tile[t, lane], mutual, limits, best, scratch)
        for i in range(first, stop):
            best.bounds[i] = scratch.bounds[i - first]


@jit(inline=True)
def _take(queries, first, lane, points, j, product, mutual, limits, best, scratch):
    """One pair that may be near: measured, and offered where the product exceeds that side's bound."""
    i = first + lane
    offset = points.offsets[j]
    to_query = not product <= offset + scratch.bounds[lane]
    to_point = mutual and not product <= scratch.offsets[lane] + best.bounds[j]
    # of equal rows only one with a lower index could still enter
    to_query = to_query and not (best.keys[i, 0] == 0.0 and j > best.indices[i, 0] and limits.metric != INNER_PRODUCT)
    to_point = to_point and not (best.keys[j, 0] == 0.0 and i > best.indices[j, 0] and limits.metric != INNER_PRODUCT)
    if not (to_query or to_point):
        return
    key = key_of(limits.metric, queries, i, points, j)
    if to_query and _offer(key, j, best, i):
        scratch.bounds[lane] = bound_of(best.keys[i, 0], scratch.offsets[lane], queries.norms[i], limits)
    if to_point and _offer(key, i, best, j):
        best.bounds[j] = bound_of(best.keys[j, 0], offset, points.norms[j], limits)


@jit
def finish_block(best, metric, start, stop, offsets, distances):
    """Heaps into rising order, free places marked by -1; distances of the rows start … stop."""
    keys, indices = best.keys, best.indices
    for i in range(start, stop):
        for last in range(keys.shape[1] - 1, 0, -1):
            key, j = keys[i, 0], indices[i, 0]
            _sift(keys[i, last], indices[i, last], keys, indices, i, last)
            keys[i, last], indices[i, last] = key, j
        unfit = offsets[i] == offsets.dtype.type(NOBODY)
        for place in range(keys.shape[1]):
            if indices[i, place] == NO_INDEX:
                indices[i, place] = -1
            key = np.nan if unfit else keys[i, place]
            if metric == EUCLIDEAN:
                key = np.sqrt(key)
            distances[i, place] = -key if metric == INNER_PRODUCT else key
