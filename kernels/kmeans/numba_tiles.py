"""Compiled blocks of the CPU kernels: the nearest center of 64 rows at a time, for any number of centers.

Half a squared distance less half the row's norm is |c|^2 / 2 - x.c: a product of the tile's centers with the
rows in lanes. Rows and centers are first shifted by the mean of the centers. The best score alone proves
nothing, for rounding moves scores by up to ``error`` times the norms involved; where the runner-up lies
within that bound, the row is decided by differences in float64 over all centers. So labels are those of exact
distances.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastdc.kernels._lanes import load_columns, make_corner, padded
from fastdc.kernels._numba import jit
from fastdc.kernels._simd import INNER, gemm, prepare
from fastdc.kernels._vectors import LANES, VECTOR_BYTES, VECTORS
from fastdc.kernels.kmeans.numba_simd import sq_distances, two_smallest

FEW = 3  # centers, to which distances in float64 take less time than a tile, and leave nothing to decide
BY_DIFFERENCES = 8  # features up to which differences are as fast as a product
TILE = 126  # centers of a tile, a multiple of gemm's rows: with 64 rows it takes 32 KB
SEEDING_ROWS = 512  # rows whose masses k-means++ sums up together


class Centers(NamedTuple):
    """Centers as the tiles want them."""

    raw: NDArray  # (n_clusters, n_features)
    shift: NDArray  # (n_features padded to 16,) the mean of the centers; zeros with few features
    factors: NDArray  # (n_clusters, n_features): shift - raw; raw itself with few features
    offsets: NDArray  # (n_clusters,): half the shifted squared norms; zeros with few features
    error: float  # a score's rounding error is below this times the norms involved


class Scratch(NamedTuple):
    """What one worker owns."""

    columns: NDArray  # (n_features padded to 16, 64) shifted rows, one a lane
    corner: NDArray  # (16, 16) rows that a vector load would overrun
    tile: NDArray  # (TILE, 64) scores of one tile of centers
    sq_norms: NDArray  # (64,) of the shifted rows
    best: NDArray  # (64,) smallest score
    second: NDArray  # (64,) second smallest
    nearest: NDArray  # (64,) index of the smallest score, as wide as the scores
    sq_dists: NDArray  # (64,) float64, to that center, by differences
    unsure: NDArray  # (64,) whether rounding may have chosen the center


class Totals(NamedTuple):
    """Sums over rows, of one block or of all."""

    sums: NDArray  # (n_clusters, n_features) float64
    counts: NDArray  # (n_clusters,) float64: sums of weights
    members: NDArray  # (n_clusters,) int64: rows
    inertia: NDArray  # (1,) float64
    n_changed: NDArray  # (1,) int64


def prepare_centers(raw: NDArray, shift: NDArray | None = None) -> Centers:
    """With ``shift``, as a call before returned it, in place of the mean of these centers."""
    prepare(raw.dtype)
    n_clusters, n_features = raw.shape
    unit = float(np.finfo(raw.dtype).eps) / 2
    if n_features <= BY_DIFFERENCES:
        nothing = np.zeros(padded(n_features), raw.dtype)
        return Centers(raw, nothing, raw, np.zeros(n_clusters, raw.dtype), (n_features + 4) * unit)
    with np.errstate(over="ignore", invalid="ignore"):
        if shift is None:
            shift = np.zeros(padded(n_features), raw.dtype)
            mean = raw.mean(axis=0, dtype=np.float64).astype(raw.dtype)
            shift[:n_features] = np.where(np.isfinite(mean), mean, 0)
        factors = shift[:n_features] - raw
        offsets = (np.einsum("kd,kd->k", factors, factors, dtype=np.float64) / 2).astype(raw.dtype)
    longest_chain = min(n_features, INNER) + -(-n_features // INNER)
    return Centers(raw, shift, factors, offsets, (longest_chain + 8) * unit)


def make_scratch(n_features: int, dtype: np.dtype) -> Scratch:
    return Scratch(
        columns=np.empty((padded(n_features), LANES), dtype),
        corner=make_corner(dtype),
        tile=np.empty((TILE, LANES), dtype),
        sq_norms=np.empty(LANES, dtype),
        best=np.empty(LANES, dtype),
        second=np.empty(LANES, dtype),
        nearest=np.empty(LANES, np.int32 if dtype.itemsize == 4 else np.int64),
        sq_dists=np.empty(LANES, np.float64),
        unsure=np.empty(LANES, np.bool_),
    )


def make_totals(n_clusters: int, n_features: int) -> Totals:
    return Totals(
        sums=np.zeros((n_clusters, n_features)),
        counts=np.zeros(n_clusters),
        members=np.zeros(n_clusters, np.int64),
        inertia=np.zeros(1),
        n_changed=np.zeros(1, np.int64),
    )


@jit(reassociate=True, inner=True)
def _fill_sq_norms(n_features, scratch):
    sq_norms = scratch.sq_norms
    sq_norms[:] = sq_norms.dtype.type(0)
    for d in range(n_features):
        column = scratch.columns[d]
        for lane in range(LANES):
            sq_norms[lane] += column[lane] * column[lane]


@jit(inner=True)
def _score_tiles(centers, scratch):
    """Scores of the loaded rows with every center, a tile at a time: scratch.best, second and nearest."""
    factors = centers.factors
    n_clusters, n_features = factors.shape
    columns, tile = scratch.columns, scratch.tile
    width = VECTORS * (VECTOR_BYTES // tile.itemsize)
    scratch.best[:] = np.inf
    scratch.second[:] = np.inf
    scratch.nearest[:] = 0
    for first in range(0, n_clusters, TILE):
        count = min(TILE, n_clusters - first)
        if n_features <= BY_DIFFERENCES:
            for j in range(count):
                for lane in range(0, LANES, width):
                    sq_distances(columns, factors, (first + j) * n_features, tile, j * LANES, n_features, lane)
        else:
            gemm(factors[first : first + count], columns[:n_features], tile[:count], False)
        for lane in range(0, LANES, width):
            two_smallest(tile, centers.offsets, first, count, scratch.best, scratch.second, scratch.nearest, lane)


@jit(reassociate=True, inner=True)
def _sq_distance(row, center):
    """Squared distance by differences in float64, where differences of float32 numbers are exact."""
    total = 0.0
    for d in range(row.size):
        difference = np.float64(row[d]) - np.float64(center[d])
        total += difference * difference
    return total


@jit(inner=True)
def _mark_unsure(n_features, error, scratch):
    """scratch.unsure: lanes where a center other than the best may be the nearest.

    A center nearer than the best one found has a norm of at most |x| + |x - c_best|, which bounds the
    rounding error of its score. NaN and infinity make the comparison false, and so the row unsure.
    """
    dtype = scratch.best.dtype.type
    half, twice = dtype(0.5), dtype(2.0 * error)
    tiny = dtype(1e-38) if scratch.best.itemsize == 4 else dtype(1e-300)  # where numbers underflow
    for lane in range(LANES):
        sq_dist = dtype(scratch.sq_dists[lane])
        if n_features <= BY_DIFFERENCES:
            scale = sq_dist
        else:
            norm = np.sqrt(scratch.sq_norms[lane])
            reach = norm + np.sqrt(sq_dist)
            scale = reach * (norm + half * reach)
        scratch.unsure[lane] = not (scratch.second[lane] - scratch.best[lane] > twice * scale + tiny)


@jit(inner=True)
def _decide(x, centers, scratch):
    """Nearest center of row x by differences, of equals the lowest, and its squared distance; -1 if none."""
    nearest, smallest = -1, np.inf
    for j in range(centers.raw.shape[0]):
        sq_dist = _sq_distance(x, centers.raw[j])
        if sq_dist < smallest:
            nearest, smallest = j, sq_dist
    if not x.dtype.type(smallest) < np.inf:
        nearest = -1
        for d in range(x.size):
            if x[d] != x[d]:
                smallest = np.nan
    return nearest, smallest


@jit(inner=True)
def _nearest_tile(x, centers, scratch):
    """scratch.nearest and sq_dists of up to 64 rows x."""
    n_features = x.shape[1]
    load_columns(x, centers.shift, scratch.columns, scratch.corner)
    if n_features > BY_DIFFERENCES:
        _fill_sq_norms(n_features, scratch)
    _score_tiles(centers, scratch)
    scratch.sq_dists[:] = 0.0
    for lane in range(x.shape[0]):
        scratch.sq_dists[lane] = _sq_distance(x[lane], centers.raw[scratch.nearest[lane]])
    _mark_unsure(n_features, centers.error, scratch)
    for lane in range(x.shape[0]):
        if scratch.unsure[lane]:
            scratch.nearest[lane], scratch.sq_dists[lane] = _decide(x[lane], centers, scratch)


@jit
def nearest_block(x, centers, scratch, labels, sq_dists):
    """labels and sq_dists (float64) of rows x (m, n_features)."""
    if centers.raw.shape[0] <= FEW:
        for i in range(x.shape[0]):
            labels[i], sq_dists[i] = _decide(x[i], centers, scratch)
        return
    for start in range(0, x.shape[0], LANES):
        part = x[start : start + LANES]
        _nearest_tile(part, centers, scratch)
        for lane in range(part.shape[0]):
            labels[start + lane] = scratch.nearest[lane]
            sq_dists[start + lane] = scratch.sq_dists[lane]


@jit
def add_rows(x, labels, sq_dists, weights, previous, totals):
    """Add rows x to the totals of their labels; weights and previous labels are (m,), or empty for none."""
    for i in range(x.shape[0]):
        label = labels[i]
        if previous.size == 0 or previous[i] != label:
            totals.n_changed[0] += 1
        if label < 0:
            continue
        weight = weights[i] if weights.size > 0 else 1.0
        totals.members[label] += 1
        totals.counts[label] += weight
        totals.inertia[0] += weight * sq_dists[i]
        for d in range(x.shape[1]):
            totals.sums[label, d] += weight * x[i, d]


@jit
def add_and_clear(part, total):
    """total += part; part becomes zero. Only clusters with members are touched."""
    total.inertia[0] += part.inertia[0]
    total.n_changed[0] += part.n_changed[0]
    part.inertia[0] = 0.0
    part.n_changed[0] = 0
    for j in range(part.members.size):
        if part.members[j] > 0:
            total.members[j] += part.members[j]
            total.counts[j] += part.counts[j]
            part.members[j] = 0
            part.counts[j] = 0.0
            for d in range(part.sums.shape[1]):
                total.sums[j, d] += part.sums[j, d]
                part.sums[j, d] = 0.0


@jit
def seeding_block(x, weights, winner, candidates, scratch, closest, masses):
    """k-means++: closest (m,) squared distance to any center so far, and its sums with each candidate added.

    winner (0 or 1, d) is the center added last, candidates (c, d) may be the next one; weights (m,) or empty;
    masses (m / SEEDING_ROWS, c) are sums over SEEDING_ROWS rows each.
    """
    n_features = x.shape[1]
    shift = np.zeros(scratch.columns.shape[0], x.dtype)
    width = VECTORS * (VECTOR_BYTES // x.itemsize)
    masses[:] = 0.0
    for start in range(0, x.shape[0], LANES):
        mass = masses[start // SEEDING_ROWS]
        part = x[start : start + LANES]
        load_columns(part, shift, scratch.columns, scratch.corner)
        for j in range(winner.shape[0] + candidates.shape[0]):
            c = j - winner.shape[0]
            center = winner if c < 0 else candidates
            for lane in range(0, LANES, width):
                center_start = max(c, 0) * n_features
                sq_distances(scratch.columns, center, center_start, scratch.best, 0, n_features, lane)
            for lane in range(part.shape[0]):
                i = start + lane
                # a distance that is NaN or infinite leaves the row as far as it was
                smaller = scratch.best[lane] if scratch.best[lane] < closest[i] else closest[i]
                if c < 0:
                    closest[i] = smaller
                else:
                    mass[c] += smaller * (weights[i] if weights.size > 0 else 1.0)
