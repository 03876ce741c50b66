"""Compiled blocks of the consistency of neighbours. A tile is (padded, 64): 64 rows in lanes, a cluster a row of it.

Dot products are sums of products; where one of 64 rows is so small that terms may have underflowed, these rows are
done again in the log domain.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastdc.kernels._lanes import load_columns, make_corner, padded, store_columns
from fastdc.kernels._math import exp, log2
from fastdc.kernels._numba import jit
from fastdc.kernels._vectors import LANES
from fastdc.kernels.graph.reference import FARTHEST

_LN2 = float(np.log(2.0))
_FARTHEST = float(FARTHEST)
_SMALL = 1e-20  # dot products below this may have lost terms that underflowed
_TINY_32, _TINY_64 = float(np.finfo(np.float32).tiny), float(np.finfo(np.float64).tiny)


class Scratch(NamedTuple):
    """What one worker owns."""

    anchor: NDArray  # (padded, 64)
    neighbor: NDArray  # (padded, 64)
    gradient: NDArray  # (padded, 64)
    zeros: NDArray  # (padded,)
    corner: NDArray


def make_scratch(n_clusters: int, dtype: np.dtype) -> Scratch:
    anchor, neighbor, gradient = (np.empty((padded(n_clusters), LANES), dtype) for _ in range(3))
    return Scratch(anchor, neighbor, gradient, np.zeros(padded(n_clusters), dtype), make_corner(dtype))


@jit
def consistency_block(anchor, neighbor, from_logits, scratch, grad_anchor, grad_neighbor):
    """Sum over rows (m, k) of -ln <p_i, p_j>, float64; gradients into (m, k), or of no rows where not wanted."""
    k = anchor.shape[1]
    a, b, gradient = scratch.anchor[:k], scratch.neighbor[:k], scratch.gradient[:k]
    dot, largest = np.empty(LANES, anchor.dtype), np.empty(LANES, anchor.dtype)
    of_a, of_b = np.empty(LANES, anchor.dtype), np.empty(LANES, anchor.dtype)
    loss = 0.0
    for start in range(0, anchor.shape[0], LANES):
        m = min(LANES, anchor.shape[0] - start)
        _load(anchor[start : start + m], neighbor[start : start + m], scratch)
        if from_logits:
            _exponentials(a, largest, of_a)
            _exponentials(b, largest, of_b)
        else:
            of_a[:], of_b[:] = 1, 1
        _dot(a, b, dot)
        by_products = dot.min() > _SMALL
        if by_products:  # NaN is not
            _log_of_products(dot, of_a, of_b, largest)
        else:
            _load(anchor[start : start + m], neighbor[start : start + m], scratch)
            if from_logits:
                _log_softmax(a, largest, dot, of_a)
                _log_softmax(b, largest, dot, of_b)
            else:
                _logarithms(a)
                _logarithms(b)
            _log_dot(a, b, largest, dot)
            largest[:] = dot
        for lane in range(m):
            loss -= np.float64(largest[lane])
        if grad_anchor.shape[0] > 0:
            if by_products:
                _gradient_of_products(a, b, dot, of_a, from_logits, gradient)
            else:
                _gradient(a, b, dot, of_a, from_logits, gradient)
            store_columns(scratch.gradient, m, grad_anchor[start:], scratch.corner)
        if grad_neighbor.shape[0] > 0:
            if by_products:
                _gradient_of_products(b, a, dot, of_b, from_logits, gradient)
            else:
                _gradient(b, a, dot, of_b, from_logits, gradient)
            store_columns(scratch.gradient, m, grad_neighbor[start:], scratch.corner)
    return loss


@jit(inner=True)
def _load(anchor, neighbor, scratch):
    load_columns(anchor, scratch.zeros, scratch.anchor, scratch.corner)
    load_columns(neighbor, scratch.zeros, scratch.neighbor, scratch.corner)


@jit(inner=True)
def _exponentials(x, largest, total):
    """Logits x (k, 64) become exp(x - largest), total their sum."""
    _below_largest(x, largest)
    total[:] = x.dtype.type(0)
    for j in range(x.shape[0]):
        row = x[j]
        for lane in range(LANES):
            row[lane] = exp(row[lane])
        for lane in range(LANES):
            total[lane] += row[lane]


@jit(inner=True)
def _dot(a, b, dot):
    dot[:] = a.dtype.type(0)
    for j in range(a.shape[0]):
        row, other = a[j], b[j]
        for lane in range(LANES):
            dot[lane] += row[lane] * other[lane]


@jit(inner=True)
def _log_of_products(dot, of_a, of_b, logarithm):
    for lane in range(LANES):
        logarithm[lane] = dot[lane] / of_a[lane] / of_b[lane]
    _to_logarithm(logarithm)


@jit(inner=True)
def _gradient_of_products(a, b, dot, total, from_logits, gradient):
    """Of -ln <p, q> with a = total p: to the logits of p, a / total - a b / dot, or to p, -b / dot."""
    one = a.dtype.type(1)
    inverse, share = np.empty(LANES, a.dtype), np.empty(LANES, a.dtype)
    for lane in range(LANES):
        inverse[lane], share[lane] = one / total[lane], one / dot[lane]
    for j in range(a.shape[0]):
        row, other, out = a[j], b[j], gradient[j]
        if from_logits:
            for lane in range(LANES):
                out[lane] = row[lane] * (inverse[lane] - other[lane] * share[lane])
        else:
            for lane in range(LANES):
                out[lane] = -other[lane] * share[lane]


@jit(inner=True)
def _below_largest(x, largest):
    """Logits x (k, 64) become their distance to the row's largest, at most so far."""
    floor = x.dtype.type(-_FARTHEST)
    largest[:] = x[0]
    for j in range(1, x.shape[0]):
        row = x[j]
        for lane in range(LANES):
            largest[lane] = row[lane] if row[lane] > largest[lane] else largest[lane]
    for j in range(x.shape[0]):
        row = x[j]
        for lane in range(LANES):
            below = row[lane] - largest[lane]
            row[lane] = floor if below < floor else below  # leaves NaN


@jit(inner=True)
def _log_softmax(x, largest, total, lowest):
    """Logits x (k, 64) become logarithms of probabilities; lowest is what those become that are too far below."""
    floor = x.dtype.type(-_FARTHEST)
    _below_largest(x, largest)
    total[:] = x.dtype.type(0)
    for j in range(x.shape[0]):
        row = x[j]
        for lane in range(LANES):
            total[lane] += exp(row[lane])
    _to_logarithm(total)
    for lane in range(LANES):
        lowest[lane] = floor - total[lane]
    for j in range(x.shape[0]):
        row = x[j]
        for lane in range(LANES):
            row[lane] -= total[lane]


@jit(inner=True)
def _logarithms(p):
    """Probabilities p (k, 64) become logarithms, of p = 0 that of the smallest normal number."""
    tiny = p.dtype.type(_TINY_32 if p.itemsize == 4 else _TINY_64)
    for j in range(p.shape[0]):
        row = p[j]
        for lane in range(LANES):
            row[lane] += tiny
        _to_logarithm(row)


@jit(inner=True)
def _to_logarithm(x):
    """ln of each lane; NaN of NaN."""
    ln2 = x.dtype.type(_LN2)
    for lane in range(LANES):
        value = log2(x[lane]) * ln2
        x[lane] = value if x[lane] == x[lane] else x[lane]


@jit(inner=True)
def _log_dot(a, b, largest, dot):
    """dot = ln of the sum over clusters of exp(a + b)."""
    zero = a.dtype.type(0)
    total = np.empty(LANES, a.dtype)
    for lane in range(LANES):
        largest[lane], total[lane] = a[0, lane] + b[0, lane], zero
    for j in range(1, a.shape[0]):
        row, other = a[j], b[j]
        for lane in range(LANES):
            value = row[lane] + other[lane]
            largest[lane] = value if value > largest[lane] else largest[lane]
    for j in range(a.shape[0]):
        row, other = a[j], b[j]
        for lane in range(LANES):
            total[lane] += exp(row[lane] + other[lane] - largest[lane])
    _to_logarithm(total)
    for lane in range(LANES):
        dot[lane] = largest[lane] + total[lane]


@jit(inner=True)
def _gradient(a, b, dot, lowest, from_logits, gradient):
    """Of -ln <p, q> to the logits of p, exp(a) - exp(a + b - dot) or 0 at the lowest, or to p, -exp(b - dot)."""
    for j in range(a.shape[0]):
        row, other, out = a[j], b[j], gradient[j]
        if from_logits:
            for lane in range(LANES):
                slope = exp(row[lane]) - exp(row[lane] + other[lane] - dot[lane])
                out[lane] = a.dtype.type(0) if row[lane] <= lowest[lane] else slope
        else:
            for lane in range(LANES):
                out[lane] = -exp(other[lane] - dot[lane])
