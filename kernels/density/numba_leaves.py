"""Rows sorted into leaves: boxes of 64 rows that lie near each other, and groups of 64 leaves.

A tree of medians whose leaves all hold 64 rows needs no nodes: leaf i is rows 64 i … 64 i + 63, group g is leaves
64 g … 64 g + 63. In low dimensions a box is near few others; in high ones near all, and what is left are tiles of
all pairs.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastdc.kernels._copies import copy_space
from fastdc.kernels._numba import jit
from fastdc.kernels._parallel import block_rows, run_blocks
from fastdc.kernels._vectors import LANES

LEAF = LANES
GROUP = 64  # leaves
DEEPEST = 128  # of the stack of halves


class Leaves(NamedTuple):
    """Rows in the order of the leaves."""

    rows: NDArray  # (n, d)
    columns: NDArray  # (n_leaves, d, 64): each leaf's rows as columns, NaN beyond the last row
    order: NDArray  # (n,) int64: the number that a row had before
    low: NDArray  # (n_leaves, d) float64
    high: NDArray
    group_low: NDArray  # (n_groups, d) float64
    group_high: NDArray


def make_leaves(x: NDArray) -> Leaves:
    """Leaves of finite rows x (n, d), float32 or float64."""
    n, d = x.shape
    order = np.arange(n)
    split_rows(x, order, np.empty(n, x.dtype))
    n_leaves = -(-n // LEAF)
    n_groups = -(-n_leaves // GROUP)
    boxes = [np.empty((count, d)) for count in (n_leaves, n_leaves, n_groups, n_groups)]
    leaves = Leaves(copy_space(x.shape, x.dtype), copy_space((n_leaves, d, LEAF), x.dtype), order, *boxes)

    def work(worker: int, start: int, stop: int) -> None:
        fill_leaves(x, start, stop, leaves)

    run_blocks(n_leaves, block_rows(n_leaves), work)
    firsts = np.arange(0, n_leaves, GROUP)
    leaves.group_low[:] = np.minimum.reduceat(leaves.low, firsts, axis=0)
    leaves.group_high[:] = np.maximum.reduceat(leaves.high, firsts, axis=0)
    return leaves


@jit
def split_rows(x, order, keys):
    """Sort ``order`` (n,) so that each run of 64 rows, from 0 on, is a leaf. ``keys`` (n,) is scratch."""
    starts, stops = np.empty(DEEPEST, np.int64), np.empty(DEEPEST, np.int64)
    starts[0], stops[0] = 0, order.size
    top = 1
    while top > 0:
        top -= 1
        start, stop = starts[top], stops[top]
        unit = LEAF * GROUP if stop - start > LEAF * GROUP else LEAF
        units = (stop - start + unit - 1) // unit
        if units < 2:
            continue
        axis = _widest(x, order, start, stop)
        if axis < 0:
            continue
        middle = start + units // 2 * unit
        for i in range(start, stop):
            keys[i] = x[order[i], axis]
        _select(keys, order, start, stop - 1, middle)
        starts[top], stops[top] = start, middle
        starts[top + 1], stops[top + 1] = middle, stop
        top += 2


@jit(inner=True)
def _widest(x, order, start, stop):
    """The feature in which the rows spread most; -1 where all are equal."""
    n_features = x.shape[1]
    low, high = x[order[start]].copy(), x[order[start]].copy()
    for i in range(start, stop):
        row = order[i]
        for d in range(n_features):
            low[d], high[d] = min(low[d], x[row, d]), max(high[d], x[row, d])
    widest, axis = 0.0, -1
    for d in range(n_features):
        spread = np.float64(high[d]) - np.float64(low[d])
        if spread > widest:
            widest, axis = spread, d
    return axis


@jit(inner=True)
def _select(keys, order, first, last, middle):
    """Rows before ``middle`` get keys no larger than those from it on (Hoare)."""
    while first < last:
        a, b, c = keys[first], keys[(first + last) // 2], keys[last]
        pivot = max(min(a, b), min(max(a, b), c))
        i, j = first, last
        while i <= j:
            while keys[i] < pivot:
                i += 1
            while keys[j] > pivot:
                j -= 1
            if i <= j:
                keys[i], keys[j] = keys[j], keys[i]
                order[i], order[j] = order[j], order[i]
                i += 1
                j -= 1
        if middle <= j:
            last = j
        elif middle >= i:
            first = i
        else:
            return


@jit
def fill_leaves(x, first, last, leaves):
    """Rows, columns and boxes of the leaves first … last."""
    n, n_features = x.shape
    for leaf in range(first, last):
        start, stop = leaf * LEAF, min((leaf + 1) * LEAF, n)
        leaves.low[leaf], leaves.high[leaf] = np.inf, -np.inf
        leaves.columns[leaf] = np.nan
        for i in range(start, stop):
            row = leaves.order[i]
            for d in range(n_features):
                value = x[row, d]
                leaves.rows[i, d] = value
                leaves.columns[leaf, d, i - start] = value
                leaves.low[leaf, d] = min(leaves.low[leaf, d], np.float64(value))
                leaves.high[leaf, d] = max(leaves.high[leaf, d], np.float64(value))


@jit(inner=True)
def gap(low, high, i, other_low, other_high, j, enough):
    """Squared distance between boxes i and j; no further than ``enough``."""
    total = 0.0
    for d in range(low.shape[1]):
        apart = max(other_low[j, d] - high[i, d], low[i, d] - other_high[j, d])
        if apart > 0.0:
            total += apart * apart
            if total > enough:
                break
    return total


@jit(inner=True)
def span(low, high, i, j, enough):
    """Squared distance of the farthest corners of boxes i and j; no further than ``enough``."""
    total = 0.0
    for d in range(low.shape[1]):
        apart = max(high[j, d] - low[i, d], high[i, d] - low[j, d])
        total += apart * apart
        if total > enough:
            break
    return total
