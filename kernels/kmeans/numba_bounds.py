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

from fastdc.kernels._lanes import padded, transpose_rows
from fastdc.kernels._numba import jit
from fastdc.kernels._simd import gemm
from fastdc.kernels._vectors import LANES, ROWS, VECTOR_BYTES, VECTORS, WIDEST
from fastdc.kernels.kmeans.numba_simd import row_products, row_products_one
from fastdc.kernels.kmeans.numba_tiles import _decide, _sq_distance, add_rows

PART = 512  # rows whose groups are listed together
LONG_ROW = 192  # features from which rows are multiplied where they lie
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
    moves: NDArray  # (n_groups,) float64: the farthest that a center moved since the last pass; inf: look at all
    returns: NDArray  # (n_groups,) whether a center has come back from the last group


class Scratch(NamedTuple):
    """What one worker owns. "Listed" arrays go with ``lists``: entry p of group g is of row lists[g, p]."""

    columns: NDArray  # (padded * 64,) rows of a group in lanes
    numbers: NDArray  # (64,) which rows, the last one repeated
    tile: NDArray  # (largest group * 64,) their scores
    lists: NDArray  # (n_groups, PART) rows of the part that look at a group
    lengths: NDArray  # (n_groups,)
    listed_least: NDArray  # (n_groups, PART) least score of the group's centers
    listed_second: NDArray  # (n_groups, PART)
    listed_nearest: NDArray  # (n_groups, PART) int32 index of the least within the group
    distances: NDArray  # (PART,) float64, to the own center, rounded up
    norms: NDArray  # (PART,) of the shifted rows that look
    looks: NDArray  # (PART,) whether any group is looked at
    own_is_new: NDArray  # (PART,) whether the own center is in none of them
    best: NDArray  # (PART,) float64 least score of all groups looked at
    second: NDArray  # (PART,)
    places: NDArray  # (PART,) that of the least in Groups.order, -1 for none, -2 for the own center


def make_scratch(n_features: int, groups: Groups, dtype: np.dtype) -> Scratch:
    listed = len(groups.moves), PART
    largest = int(np.diff(groups.starts).max())
    return Scratch(
        columns=np.empty(padded(n_features) * LANES, dtype),
        numbers=np.empty(LANES, np.int64),
        tile=np.empty(largest * LANES, dtype),
        lists=np.empty(listed, np.int64),
        lengths=np.empty(listed[0], np.int64),
        listed_least=np.empty(listed, dtype),
        listed_second=np.empty(listed, dtype),
        listed_nearest=np.empty(listed, np.int32),
        distances=np.empty(PART),
        norms=np.empty(PART),
        looks=np.empty(PART, np.bool_),
        own_is_new=np.empty(PART, np.bool_),
        best=np.empty(PART),
        second=np.empty(PART),
        places=np.empty(PART, np.int64),
    )


@jit
def bounded_block(x, centers, groups, scratch, labels, lower, sq_norms, sq_dists, weights, previous, totals):
    """One pass over rows x (m, d): labels become the new ones, lower (m, n_groups) holds for them.

    sq_norms (m,) are those of the shifted rows, negative before they are known; the rest is as of ``add_rows``.
    Returns how many pairs of a row and a group were looked at.
    """
    n_looks = 0
    for start in range(0, x.shape[0], PART):
        part = slice(start, start + PART)
        _find_groups(x[part], centers, groups, scratch, labels[part], lower[part], sq_norms[part], sq_dists[part])
        n_looks += scratch.lengths.sum()
        _score_groups(x[part], centers, groups, scratch)
        for g in range(groups.moves.size):
            _take_in_group(groups, scratch, g)
        _choose(x[part], centers, groups, scratch, labels[part], lower[part], sq_norms[part], sq_dists[part])
        for g in range(groups.moves.size):
            _bound_group(centers, groups, scratch, g, labels[part], lower[part], sq_norms[part])
        add_rows(x[part], labels[part], sq_dists[part], weights[part], previous[part], totals)
    return n_looks


@jit(inner=True)
def _find_groups(x, centers, groups, scratch, labels, lower, sq_norms, sq_dists):
    """Distances to the own centers; bounds less the moves; each group's list of rows."""
    shift = centers.shift[: x.shape[1]]
    scratch.looks[:] = False
    scratch.best[:] = np.inf
    scratch.second[:] = np.inf
    scratch.places[:] = -1
    for i in range(x.shape[0]):
        own = labels[i]
        sq_dists[i] = _sq_distance(x[i], centers.raw[own]) if own >= 0 else np.inf
        scratch.distances[i] = np.sqrt(sq_dists[i]) * GROW
        bounds = lower[i]
        for g in range(groups.moves.size):
            bound = min(bounds[g], bounds[-1]) if groups.returns[g] else bounds[g]
            bounds[g] = max(np.float64(bound) - groups.moves[g], 0.0) * SHRINK
        scratch.own_is_new[i] = own >= 0 and np.float64(bounds[groups.group_of[own]]) > scratch.distances[i]
    for g in range(groups.moves.size):
        scratch.lengths[g] = 0
        if groups.starts[g] == groups.starts[g + 1]:
            continue
        length, rows = 0, scratch.lists[g]
        for i in range(x.shape[0]):  # without a branch, which nothing could foresee
            looks = not np.float64(lower[i, g]) > scratch.distances[i]
            rows[length] = i
            length += looks
            scratch.looks[i] |= looks
        scratch.lengths[g] = length
    for i in range(x.shape[0]):
        if scratch.looks[i]:
            if sq_norms[i] < 0.0:
                sq_norms[i] = _sq_distance(x[i], shift)
            scratch.norms[i] = np.sqrt(sq_norms[i])


@jit(inner=True)
def _score_groups(x, centers, groups, scratch):
    """Least and second least score of each listed row among the centers of its groups."""
    n_groups = groups.moves.size
    if scratch.lengths[: n_groups - 1].min() == x.shape[0]:  # all rows, all groups: each row is loaded once
        for start in range(0, x.shape[0], LANES):
            for g in range(n_groups):
                _score_some(x, centers, groups, scratch, g, start, g == 0)
    else:
        for g in range(n_groups):
            for start in range(0, scratch.lengths[g], LANES):
                _score_some(x, centers, groups, scratch, g, start, True)


@jit(inner=True)
def _score_some(x, centers, groups, scratch, g, start, load):
    """At most 64 of the rows that look at group g, from entry ``start`` of its list on."""
    first, last = groups.starts[g], groups.starts[g + 1]
    count, n_features, wide = last - first, x.shape[1], scratch.columns.size // LANES
    rows = scratch.lists[g, start : min(start + LANES, scratch.lengths[g])]
    width = -(-rows.size // WIDEST) * WIDEST
    tile = scratch.tile[: count * width].reshape(count, width)
    for lane in range(width):
        scratch.numbers[lane] = rows[min(lane, rows.size - 1)]
    if n_features >= LONG_ROW:
        _multiply_rows(x, scratch.numbers, rows.size, centers.shift, groups.factors, first, tile)
    else:
        columns = scratch.columns[: wide * width].reshape(wide, width)
        if load:
            _load(x, scratch.numbers, centers.shift, columns)
        gemm(groups.factors[first:last], columns[:n_features], tile, False)
    here = slice(start, start + width)
    _two_smallest(
        tile,
        groups.offsets[first:last],
        scratch.listed_least[g, here],
        scratch.listed_second[g, here],
        scratch.listed_nearest[g, here],
    )


@jit(inner=True)
def _load(x, numbers, shift, columns):
    """The rows of these numbers less the shift, one a column."""
    width = columns.shape[1]
    size = VECTOR_BYTES // x.itemsize
    for lane in range(0, width, size):
        for d in range(0, x.shape[1], size):
            transpose_rows(x, numbers, lane, shift, d, columns, d * width + lane, width)


@jit(inner=True)
def _multiply_rows(x, numbers, count, shift, factors, first, tile):
    """The tile's products where rows and centers lie: to move a long row into lanes costs more than its products."""
    width = tile.shape[1]
    for lane in range(0, count, VECTORS):
        j = 0
        while j < tile.shape[0]:
            place = j * width + lane
            if j + ROWS <= tile.shape[0]:
                row_products(x, numbers, lane, shift, factors, first + j, tile, place, width)
                j += ROWS
            else:
                row_products_one(x, numbers, lane, shift, factors, first + j, tile, place, width)
                j += 1


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
def _take_in_group(groups, scratch, g):
    """The scores of group g among the two least of each listed row."""
    first = groups.starts[g]
    for p in range(scratch.lengths[g]):
        i = scratch.lists[g, p]
        least, second = np.float64(scratch.listed_least[g, p]), np.float64(scratch.listed_second[g, p])
        _take_in(scratch, i, least, second, first + scratch.listed_nearest[g, p])


@jit(inner=True)
def _take_in(scratch, i, score, runner_up, place):
    """One more score, and one that is no better, among the two least of row i; without branches."""
    best = scratch.best[i]
    closer = score < best
    loser = best if closer else score
    loser = runner_up if runner_up < loser else loser
    scratch.second[i] = loser if loser < scratch.second[i] else scratch.second[i]
    scratch.best[i] = score if closer else best
    scratch.places[i] = place if closer else scratch.places[i]


@jit(inner=True)
def _choose(x, centers, groups, scratch, labels, lower, sq_norms, sq_dists):
    """New labels and distances of the rows that looked at a group."""
    tiny = 1e-38 if x.itemsize == 4 else 1e-300  # where numbers underflow
    for i in range(x.shape[0]):
        if not scratch.looks[i]:
            continue
        own, own_sq_dist, sq_norm = labels[i], sq_dists[i], sq_norms[i]
        if scratch.own_is_new[i]:  # among those looked at it is not yet
            _take_in(scratch, i, 0.5 * (own_sq_dist - sq_norm), np.inf, -2)
        place = scratch.places[i]
        label = own if place < 0 else groups.order[place]
        sure = False
        if label >= 0:
            sq_dist = own_sq_dist if label == own else _sq_distance(x[i], centers.raw[label])
            # a nearer center has at most this norm, which bounds its score's error
            norm = scratch.norms[i]
            reach = norm + np.sqrt(sq_dist)
            margin = centers.error * (2.0 * reach * (norm + 0.5 * reach) + sq_norm) + tiny
            sure = scratch.second[i] - scratch.best[i] > margin
        if not sure:
            label, sq_dist = _decide(x[i], centers, scratch)
        labels[i] = label
        sq_dists[i] = sq_dist
        if scratch.own_is_new[i] and label != own:
            g = groups.group_of[own]
            lower[i, g] = min(np.float64(lower[i, g]), np.sqrt(own_sq_dist) * SHRINK)


@jit(inner=True)
def _bound_group(centers, groups, scratch, g, labels, lower, sq_norms):
    """Bounds of the listed rows for the centers of group g other than the own one."""
    first, farthest = groups.starts[g], groups.norms[g]
    for p in range(scratch.lengths[g]):
        i = scratch.lists[g, p]
        is_own = groups.order[first + scratch.listed_nearest[g, p]] == labels[i]
        score = np.float64(scratch.listed_second[g, p] if is_own else scratch.listed_least[g, p])
        error = centers.error * (farthest * (scratch.norms[i] + 0.5 * farthest) + sq_norms[i])
        bound = np.sqrt(max(2.0 * (score - error) + sq_norms[i], 0.0)) * SHRINK
        lower[i, g] = bound if score < np.inf else 0.0  # infinite where numbers overflow: nothing is known
