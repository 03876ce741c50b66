"""Compiled pass of Lloyd's algorithm that skips distances: one lower bound a row and group of centers.

The distance of a row to its own center is made anew in each pass, exactly. A group whose lower bound, less the
farthest move of its centers, is above that distance holds no nearer center and is skipped. The rows that a group
is not skipped for are gathered, so that their scores are a small product as in ``numba_tiles.py``; where rounding
could have decided a label, it is decided there in float64. So labels, sums and inertia are those of a plain pass,
bit for bit.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastdc.kernels._lanes import padded, transpose
from fastdc.kernels._numba import jit
from fastdc.kernels._simd import gemm
from fastdc.kernels._vectors import LANES, VECTOR_BYTES, WIDEST
from fastdc.kernels.kmeans.numba_tiles import _decide, _sq_distance, add_rows

PART = 512  # rows whose groups are listed together
SHRINK = 1.0 - 2e-7  # rounds a float32 bound down
GROW = 1.0 + 1e-12  # rounds a distance of float64 up


class Groups(NamedTuple):
    """Centers by groups: those of group g are ``order[starts[g]:starts[g + 1]]``."""

    order: NDArray  # (n_clusters,) int64
    starts: NDArray  # (n_groups + 1,) int64
    group_of: NDArray  # (n_clusters,) int64
    factors: NDArray  # (n_clusters, n_features) of numba_tiles.Centers, in that order
    offsets: NDArray  # (n_clusters,)
    norms: NDArray  # (n_groups,) float64: the largest shifted norm
    moves: NDArray  # (n_groups,) float64: the farthest that a center moved since the last pass


class Scratch(NamedTuple):
    """What one worker owns."""

    rows: NDArray  # (64, padded) rows of a group
    columns: NDArray  # (padded * 64,) the same in lanes
    tile: NDArray  # (largest group * 64,) their scores
    lists: NDArray  # (n_groups, PART) rows of the part that look at a group
    lengths: NDArray  # (n_groups,)
    group_best: NDArray  # (PART, n_groups) least score
    group_second: NDArray  # (PART, n_groups)
    group_index: NDArray  # (PART, n_groups) place of the least in Groups.order, -1 where skipped
    best: NDArray  # (PART,) least score of all groups looked at
    second: NDArray  # (PART,)
    places: NDArray  # (PART,) that of the least in Groups.order, -1 for none, -2 for the own center
    sq_norms: NDArray  # (PART,) of shifted rows, negative before they are known


def make_scratch(n_features: int, groups: Groups, dtype: np.dtype) -> Scratch:
    t = len(groups.moves)
    largest = int(np.diff(groups.starts).max())
    wide = padded(n_features)
    return Scratch(
        rows=np.zeros((LANES, wide), dtype),
        columns=np.empty(wide * LANES, dtype),
        tile=np.empty(largest * LANES, dtype),
        lists=np.empty((t, PART), np.int64),
        lengths=np.empty(t, np.int64),
        group_best=np.empty((PART, t)),
        group_second=np.empty((PART, t)),
        group_index=np.empty((PART, t), np.int64),
        best=np.empty(PART),
        second=np.empty(PART),
        places=np.empty(PART, np.int64),
        sq_norms=np.empty(PART),
    )


@jit
def bounded_block(x, centers, groups, scratch, labels, lower, sq_dists, weights, previous, totals):
    """One pass over rows x (m, d): labels become the new ones, lower (m, n_groups) holds for them.

    The rest is as of ``add_rows``. Returns how many pairs of a row and a group were looked at.
    """
    n_looks = 0
    for start in range(0, x.shape[0], PART):
        part = slice(start, start + PART)
        _find_groups(x[part], centers, groups, scratch, labels[part], lower[part], sq_dists[part])
        for g in range(groups.moves.size):
            n_looks += scratch.lengths[g]
            _score_group(x[part], centers, groups, scratch, g)
        _choose(x[part], centers, groups, scratch, labels[part], lower[part], sq_dists[part])
        add_rows(x[part], labels[part], sq_dists[part], weights[part], previous[part], totals)
    return n_looks


@jit(inner=True)
def _find_groups(x, centers, groups, scratch, labels, lower, sq_dists):
    """Distances to the own centers; bounds less the moves; each group's list of rows."""
    n_groups = groups.moves.size
    scratch.lengths[:] = 0
    for i in range(x.shape[0]):
        sq_dists[i] = _sq_distance(x[i], centers.raw[labels[i]]) if labels[i] >= 0 else np.inf
        own = np.sqrt(sq_dists[i]) * GROW
        scratch.sq_norms[i] = -1.0
        scratch.best[i] = np.inf
        scratch.second[i] = np.inf
        scratch.places[i] = -1
        bounds, found = lower[i], scratch.group_index[i]
        for g in range(n_groups):
            bounds[g] = max(np.float64(bounds[g]) - groups.moves[g], 0.0) * SHRINK
            found[g] = -1
        for g in range(n_groups):
            if not np.float64(bounds[g]) > own:
                scratch.lists[g, scratch.lengths[g]] = i
                scratch.lengths[g] += 1


@jit(inner=True)
def _score_group(x, centers, groups, scratch, g):
    """Least and second least score of each listed row among the centers of group g."""
    first, last = groups.starts[g], groups.starts[g + 1]
    count, n_features = last - first, x.shape[1]
    least, second = np.empty(LANES, x.dtype), np.empty(LANES, x.dtype)
    nearest = np.empty(LANES, np.int32)
    for start in range(0, scratch.lengths[g], LANES):
        rows = scratch.lists[g, start : min(start + LANES, scratch.lengths[g])]
        width = -(-rows.size // WIDEST) * WIDEST
        columns = scratch.columns[: scratch.rows.shape[1] * width].reshape(scratch.rows.shape[1], width)
        tile = scratch.tile[: count * width].reshape(count, width)
        _load(x, rows, centers.shift, scratch, columns)
        gemm(groups.factors[first:last], columns[:n_features], tile, False)
        _two_smallest(tile, groups.offsets[first:last], least, second, nearest)
        for lane in range(rows.size):
            i = rows[lane]
            score, runner_up = np.float64(least[lane]), np.float64(second[lane])
            scratch.group_best[i, g] = score
            scratch.group_second[i, g] = runner_up
            if score < np.inf:
                scratch.group_index[i, g] = first + nearest[lane]
            _take_in(scratch, i, score, runner_up, first + nearest[lane])


@jit(inner=True)
def _take_in(scratch, i, score, runner_up, place):
    """One more score, and a worse one, among the two least of row i."""
    if score < scratch.best[i]:
        scratch.second[i] = min(scratch.best[i], runner_up)
        scratch.best[i] = score
        scratch.places[i] = place
    elif score < scratch.second[i]:
        scratch.second[i] = score


@jit(inner=True)
def _load(x, rows, shift, scratch, columns):
    """Listed rows less the shift, one a column; their squared norms where they are not known."""
    n_features, wide = x.shape[1], scratch.rows.shape[1]
    width = columns.shape[1]
    size = VECTOR_BYTES // x.itemsize
    for lane in range(width):
        row = x[rows[min(lane, rows.size - 1)]]
        for d in range(n_features):
            scratch.rows[lane, d] = row[d]
    for lane in range(0, width, size):
        for d in range(0, n_features, size):
            transpose(scratch.rows, lane * wide + d, wide, shift, d, columns, d * width + lane, width)
    for lane in range(rows.size):
        if scratch.sq_norms[rows[lane]] < 0.0:
            scratch.sq_norms[rows[lane]] = _sq_distance(scratch.rows[lane, :n_features], shift[:n_features])


@jit(inner=True)
def _two_smallest(tile, offsets, least, second, nearest):
    """Of each column of offsets[:, None] + tile; NaN is neither, and of equals the first is the least."""
    for lane in range(tile.shape[1]):
        least[lane] = np.inf
        second[lane] = np.inf
        nearest[lane] = 0
    for j in range(tile.shape[0]):
        row, offset, number = tile[j], offsets[j], np.int32(j)
        for lane in range(tile.shape[1]):
            score = row[lane] + offset
            closer = score < least[lane]
            loser = least[lane] if closer else score
            second[lane] = loser if loser < second[lane] else second[lane]
            nearest[lane] = number if closer else nearest[lane]
            least[lane] = score if closer else least[lane]


@jit(inner=True)
def _choose(x, centers, groups, scratch, labels, lower, sq_dists):
    """New labels, distances and bounds of the rows that looked at a group."""
    tiny = 1e-38 if x.itemsize == 4 else 1e-300  # where numbers underflow
    for i in range(x.shape[0]):
        sq_norm = scratch.sq_norms[i]
        if sq_norm < 0.0:
            continue
        own, own_sq_dist = labels[i], sq_dists[i]
        own_is_new = own >= 0 and scratch.group_index[i, groups.group_of[own]] < 0
        if own_is_new:  # among those looked at it is not yet
            _take_in(scratch, i, 0.5 * (own_sq_dist - sq_norm), np.inf, -2)
        place = scratch.places[i]
        label = own if place < 0 else groups.order[place]
        norm = np.sqrt(sq_norm)
        sure = False
        if label >= 0:
            sq_dist = own_sq_dist if label == own else _sq_distance(x[i], centers.raw[label])
            # a nearer center has at most this norm, which bounds its score's error
            reach = norm + np.sqrt(sq_dist)
            margin = centers.error * (2.0 * reach * (norm + 0.5 * reach) + sq_norm) + tiny
            sure = scratch.second[i] - scratch.best[i] > margin
        if not sure:
            label, sq_dist = _decide(x[i], centers, scratch)
        labels[i] = label
        sq_dists[i] = sq_dist
        for g in range(groups.moves.size):
            found = scratch.group_index[i, g]
            if found >= 0:
                score = scratch.group_second[i, g] if groups.order[found] == label else scratch.group_best[i, g]
                error = centers.error * (groups.norms[g] * (norm + 0.5 * groups.norms[g]) + sq_norm)
                lower[i, g] = np.sqrt(max(2.0 * (score - error) + sq_norm, 0.0)) * SHRINK
        if own_is_new and label != own:
            g = groups.group_of[own]
            lower[i, g] = min(np.float64(lower[i, g]), np.sqrt(own_sq_dist) * SHRINK)
