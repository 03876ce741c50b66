"""Compiled blocks of the CPU kernels over edges."""

from __future__ import annotations

import numpy as np

from fastdc.kernels._numba import jit
from fastdc.kernels._vectors import VECTOR_BYTES
from fastdc.kernels.graph.numba_pull import PULL, PULL_DIFFERENCES, WIDE

_pull_1, _pull_2, _pull_3, _pull_4 = PULL
_differ_1, _differ_2, _differ_3, _differ_4 = PULL_DIFFERENCES


@jit
def count_ends(ends, first_node, counts):
    """Adds to counts (m,) the ends among nodes first_node, first_node + 1, ..."""
    m = counts.shape[0]
    for e in range(ends.shape[0]):
        node = ends[e] - first_node
        if 0 <= node < m:
            counts[node] += 1


@jit
def fill_buckets(ends, others, first_node, places, neighbors, numbers):
    """Puts the edges that end at one of the nodes first_node, ... where places (m,) says, which moves on."""
    m = places.shape[0]
    for e in range(ends.shape[0]):
        node = ends[e] - first_node
        if 0 <= node < m:
            place = places[node]
            places[node] = place + 1
            neighbors[place] = others[e]
            numbers[place] = e


@jit
def pull_block(x, first, indptr, neighbors, values, out):
    """out (m, d) = rows first, ... of a matrix in CSR, by x (n, d)."""
    d = x.shape[1]
    size = VECTOR_BYTES // x.itemsize
    for i in range(out.shape[0]):
        begin, end = indptr[first + i], indptr[first + i + 1]
        if begin == end:
            out[i] = x.dtype.type(0)
            continue
        for column in range(0, d, WIDE * size):
            left = d - column
            if left > 3 * size:
                _pull_4(x, 0, column, neighbors, None, values, begin, end, out, i)
            elif left > 2 * size:
                _pull_3(x, 0, column, neighbors, None, values, begin, end, out, i)
            elif left > size:
                _pull_2(x, 0, column, neighbors, None, values, begin, end, out, i)
            else:
                _pull_1(x, 0, column, neighbors, None, values, begin, end, out, i)


@jit
def laplacian_block(x, first, indptr, neighbors, ids, weights, gradient):
    """Of nodes first, ...: sum over their edges, from either end, of w |x_i - x_j|^2, and half its gradient (m, d)."""
    d = x.shape[1]
    size = VECTOR_BYTES // x.itemsize
    total = 0.0
    for i in range(gradient.shape[0]):
        node = first + i
        begin, end = indptr[node], indptr[node + 1]
        if begin == end:
            gradient[i] = x.dtype.type(0)
            continue
        for column in range(0, d, WIDE * size):
            left = d - column
            if left > 3 * size:
                part = _differ_4(x, node, column, neighbors, ids, weights, begin, end, gradient, i)
            elif left > 2 * size:
                part = _differ_3(x, node, column, neighbors, ids, weights, begin, end, gradient, i)
            elif left > size:
                part = _differ_2(x, node, column, neighbors, ids, weights, begin, end, gradient, i)
            else:
                part = _differ_1(x, node, column, neighbors, ids, weights, begin, end, gradient, i)
            total += np.float64(part)
        for c in range(d):
            gradient[i, c] *= x.dtype.type(2)
    return total


@jit(inner=True, reassociate=True)
def _sq_dist(a, b):
    total = a.dtype.type(0)
    for c in range(a.size):
        difference = a[c] - b[c]
        total += difference * difference
    return total


@jit
def edge_block(x, sources, targets, weights, sq_dists):
    """Sum over edges of w |x_i - x_j|^2; the squared distances go into sq_dists (m,), or are not wanted (0,)."""
    total = 0.0
    keep = sq_dists.shape[0] > 0
    for e in range(sources.shape[0]):
        sq_dist = _sq_dist(x[sources[e]], x[targets[e]])
        if keep:
            sq_dists[e] = sq_dist
        if weights is None:
            total += np.float64(sq_dist)
        else:
            total += np.float64(weights[e]) * np.float64(sq_dist)
    return total
