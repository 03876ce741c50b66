"""Compiled passes over pairs of leaves: rows within a radius counted, joined, and looked up.

A tile holds 64 x 64 squared distances by differences, whose error is relative. So a number clearly below the squared
radius is within it and one clearly above is not; between the two the pair is measured in float64, its terms added in
the order of the features. Pairs of boxes that lie apart are skipped, and those that lie within the radius as a whole
need no tile.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastdc.kernels._numba import jit
from fastdc.kernels._simd import sq_dists
from fastdc.kernels._vectors import LANES
from fastdc.kernels.density.numba_forest import find, join
from fastdc.kernels.density.numba_leaves import GROUP, LEAF, gap, span

NO_CLUSTER = np.iinfo(np.int64).max


class Reach(NamedTuple):
    """What is within the radius."""

    limit: float  # its square
    below: float  # a tile's number up to here is within
    above: float  # one beyond here is not


class Cores(NamedTuple):
    """The core rows, in the order of the leaves."""

    is_core: NDArray  # (n,) bool
    parents: NDArray  # (n,) int64, see numba_forest
    first: NDArray  # (n_leaves,) int64: a leaf's first core row, -1 where there is none
    is_whole: NDArray  # (n_leaves,) bool: all cores of the leaf are known to be in one set


def make_reach(limit: float, n_features: int, dtype: np.dtype) -> Reach:
    """Of d + 2 roundings each is below half an epsilon; here are twice as many whole ones."""
    slack = min(0.5, (4 * n_features + 16) * float(np.finfo(dtype).eps))
    return Reach(limit, limit * (1.0 - slack), limit * (1.0 + slack))


@jit(inner=True)
def is_near(tile, t, lane, leaves, i, j, reach):
    """Whether rows i and j are within the radius; tile[t, lane] is about their squared distance."""
    about = np.float64(tile[t, lane])
    if about <= reach.below:
        return True
    if not about <= reach.above:
        return False
    total = 0.0
    for d in range(leaves.rows.shape[1]):
        difference = np.float64(leaves.rows[i, d]) - np.float64(leaves.rows[j, d])
        total += difference * difference
    return total <= reach.limit


@jit(inner=True)
def fill_tile(leaves, leaf, other, tile):
    start, stop = leaf * LEAF, min((leaf + 1) * LEAF, leaves.rows.shape[0])
    sq_dists(leaves.rows[start:stop], leaves.columns[other], tile[: stop - start], False)


@jit(inner=True, reassociate=True)
def _count_up_to(tile, t, bound):
    """How many numbers of a row of the tile are at most ``bound``."""
    total = np.int32(0)
    for lane in range(LANES):
        total += np.int32(tile[t, lane] <= bound)
    return total


@jit
def count_leaves(leaves, first, last, reach, weights, tile, counts, sums):
    """Rows within the radius of each row of the leaves first … last, itself among them.

    ``counts`` (n,) int64; or with ``weights`` (n,) float64 their ``sums`` (n,).
    """
    n = leaves.rows.shape[0]
    n_leaves = leaves.low.shape[0]
    weighted = weights.size > 0
    dtype = tile.dtype.type
    below, above = dtype(reach.below), dtype(reach.above)
    for leaf in range(first, last):
        start, stop = leaf * LEAF, min((leaf + 1) * LEAF, n)
        for group in range(leaves.group_low.shape[0]):
            if _is_apart(leaves, leaf, group, reach):
                continue
            for other in range(group * GROUP, min((group + 1) * GROUP, n_leaves)):
                if gap(leaves.low, leaves.high, leaf, leaves.low, leaves.high, other, reach.above) > reach.above:
                    continue
                base = other * LEAF
                size = min(LEAF, n - base)
                if span(leaves.low, leaves.high, leaf, other, reach.below) <= reach.below:
                    _count_all(start, stop, base, size, weights, counts, sums)
                    continue
                fill_tile(leaves, leaf, other, tile)
                for t in range(stop - start):
                    i = start + t
                    near, maybe = _count_up_to(tile, t, below), _count_up_to(tile, t, above)
                    if not weighted and near == maybe:
                        counts[i] += near
                    elif maybe > 0:
                        for lane in range(size):
                            if is_near(tile, t, lane, leaves, i, base + lane, reach):
                                if weighted:
                                    sums[i] += weights[base + lane]
                                else:
                                    counts[i] += 1


@jit(inner=True)
def _is_apart(leaves, leaf, group, reach):
    return gap(leaves.low, leaves.high, leaf, leaves.group_low, leaves.group_high, group, reach.above) > reach.above


@jit(inner=True)
def _count_all(start, stop, base, size, weights, counts, sums):
    if weights.size == 0:
        for i in range(start, stop):
            counts[i] += size
    else:
        for i in range(start, stop):
            for j in range(base, base + size):
                sums[i] += weights[j]


@jit
def join_leaves(leaves, first, last, reach, cores, tile):
    """Core rows of the leaves first … last join those of later leaves, and of their own, within the radius."""
    n_leaves = leaves.low.shape[0]
    for leaf in range(first, last):
        if cores.first[leaf] < 0:
            continue
        for group in range(leaf // GROUP, leaves.group_low.shape[0]):
            if _is_apart(leaves, leaf, group, reach):
                continue
            for other in range(max(leaf, group * GROUP), min((group + 1) * GROUP, n_leaves)):
                if cores.first[other] < 0 or _is_joined(cores, leaf, other):
                    continue
                if gap(leaves.low, leaves.high, leaf, leaves.low, leaves.high, other, reach.above) <= reach.above:
                    _join_pair(leaves, leaf, other, reach, cores, tile)


@jit(inner=True)
def _is_joined(cores, leaf, other):
    """Whether all cores of both leaves are known to be in one set."""
    if not (cores.is_whole[leaf] and cores.is_whole[other]):
        return False
    return find(cores.parents, cores.first[leaf]) == find(cores.parents, cores.first[other])


@jit(inner=True)
def _join_pair(leaves, leaf, other, reach, cores, tile):
    n = leaves.rows.shape[0]
    start, base = leaf * LEAF, other * LEAF
    size = min(LEAF, n - base)
    within = span(leaves.low, leaves.high, leaf, other, reach.below) <= reach.below
    above = tile.dtype.type(reach.above)
    if not within:
        fill_tile(leaves, leaf, other, tile)
    for t in range(min(LEAF, n - start)):
        i = start + t
        if not cores.is_core[i] or not (within or _count_up_to(tile, t, above) > 0):
            continue
        for lane in range(t + 1 if leaf == other else 0, size):
            j = base + lane
            if cores.is_core[j] and (within or is_near(tile, t, lane, leaves, i, j, reach)):
                join(cores.parents, i, j)
                if cores.is_whole[other]:
                    break
        if _is_joined(cores, leaf, other):
            return
    _look_whether_whole(cores, leaf, n)
    _look_whether_whole(cores, other, n)


@jit(inner=True)
def _look_whether_whole(cores, leaf, n):
    if cores.is_whole[leaf]:
        return
    root = find(cores.parents, cores.first[leaf])
    for i in range(leaf * LEAF, min((leaf + 1) * LEAF, n)):
        if cores.is_core[i] and find(cores.parents, i) != root:
            return
    cores.is_whole[leaf] = True


@jit
def reach_leaves(leaves, first, last, reach, cores, numbers, tile):
    """Other rows of the leaves first … last get the least number (n,) of a core row within the radius.

    On entry ``numbers`` is NO_CLUSTER for rows that look for one, and -1 for those that need not.
    """
    n = leaves.rows.shape[0]
    n_leaves = leaves.low.shape[0]
    above = tile.dtype.type(reach.above)
    for leaf in range(first, last):
        start, stop = leaf * LEAF, min((leaf + 1) * LEAF, n)
        n_looking = 0
        for i in range(start, stop):
            n_looking += not cores.is_core[i] and numbers[i] >= 0
        if n_looking == 0:
            continue
        for group in range(leaves.group_low.shape[0]):
            if _is_apart(leaves, leaf, group, reach):
                continue
            for other in range(group * GROUP, min((group + 1) * GROUP, n_leaves)):
                if cores.first[other] < 0:
                    continue
                if gap(leaves.low, leaves.high, leaf, leaves.low, leaves.high, other, reach.above) > reach.above:
                    continue
                fill_tile(leaves, leaf, other, tile)
                base = other * LEAF
                for i in range(start, stop):
                    if cores.is_core[i] or numbers[i] < 0 or _count_up_to(tile, i - start, above) == 0:
                        continue
                    for lane in range(min(LEAF, n - base)):
                        j = base + lane
                        if not cores.is_core[j] or numbers[j] >= numbers[i]:
                            continue
                        if is_near(tile, i - start, lane, leaves, i, j, reach):
                            numbers[i] = numbers[j]
