"""Compiled blocks of the consistency of neighbours. A tile is (padded, 64): 64 rows in lanes, a cluster a row of it.

Dot products are sums of products; where one of 64 rows is so small that terms may have underflowed, these rows are
done again in the log domain. The backward pass makes the exponentials once more: reading them from memory takes as
long, and nothing is kept.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastdc.kernels._lanes import load_columns, make_corner, padded, store_columns
from fastdc.kernels._math import exp, log2, multiply_add
from fastdc.kernels._numba import jit
from fastdc.kernels._vectors import LANES
from fastdc.kernels.graph.reference import FARTHEST
from fastdc.kernels.mutual_information.numba_tiles import add_mass

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


class Lanes(NamedTuple):
    """A number a row, each (64,)."""

    largest: NDArray
    of_anchor: NDArray  # sum of the weights a, b of which p = a / of_anchor and q = b / of_neighbor
    of_neighbor: NDArray
    dot: NDArray  # sum a b; ln <p, q> where it is made in the log domain
    mean: NDArray  # of the slopes under p


@jit(inline=True)
def _make_lanes(dtype):
    return Lanes(
        np.empty(LANES, dtype),
        np.empty(LANES, dtype),
        np.empty(LANES, dtype),
        np.empty(LANES, dtype),
        np.empty(LANES, dtype),
    )


@jit
def consistency_block(anchor, neighbor, from_logits, scratch, mass):
    """Sum over rows (m, k) of -ln <p_i, p_j>, float64; the anchors' sum into mass (k,) float64 unless of length 0."""
    k = anchor.shape[1]
    lanes = _make_lanes(anchor.dtype)
    one, zero = anchor.dtype.type(1), anchor.dtype.type(0)
    loss = 0.0
    mass[:] = 0.0
    for start in range(0, anchor.shape[0], LANES):
        m = min(LANES, anchor.shape[0] - start)
        _load(anchor[start : start + m], neighbor[start : start + m], scratch)
        a, b = scratch.anchor[:k], scratch.neighbor[:k]
        _weigh(a, b, from_logits, lanes)
        if mass.shape[0] > 0:
            for lane in range(LANES):
                lanes.mean[lane] = one / lanes.of_anchor[lane] if lane < m else zero
            add_mass(a, lanes.mean, mass)
        if lanes.dot.min() > _SMALL:  # NaN is not
            _log_of_products(lanes)
        else:
            _load(anchor[start : start + m], neighbor[start : start + m], scratch)
            _to_log_domain(a, b, from_logits, lanes)
        for lane in range(m):
            loss -= np.float64(lanes.dot[lane])
    return loss


@jit
def gradient_block(anchor, neighbor, from_logits, scratch, factor, slopes, grad_anchor, grad_neighbor):
    """Gradients of factor times that sum and of the sum of slopes (k,) p_i, into (m, k) unless these have no rows."""
    k = anchor.shape[1]
    lanes = _make_lanes(anchor.dtype)
    none = np.zeros(k, anchor.dtype)
    gradient = scratch.gradient[:k]
    for start in range(0, anchor.shape[0], LANES):
        m = min(LANES, anchor.shape[0] - start)
        _load(anchor[start : start + m], neighbor[start : start + m], scratch)
        a, b = scratch.anchor[:k], scratch.neighbor[:k]
        _weigh(a, b, from_logits, lanes)
        _mean_slope(a, slopes, lanes)
        by_products = lanes.dot.min() > _SMALL  # NaN is not
        if not by_products:
            _load(anchor[start : start + m], neighbor[start : start + m], scratch)
            _to_log_domain(a, b, from_logits, lanes)
        if grad_anchor.shape[0] > 0:
            total = lanes.of_anchor  # the lowest logarithms in the log domain
            if by_products:
                _gradient_of_products(a, b, lanes.dot, total, factor, slopes, lanes.mean, from_logits, gradient)
            else:
                _gradient(a, b, lanes.dot, total, factor, slopes, lanes.mean, from_logits, gradient)
            store_columns(scratch.gradient, m, grad_anchor[start:], scratch.corner)
        if grad_neighbor.shape[0] > 0:
            total = lanes.of_neighbor
            lanes.mean[:] = 0
            if by_products:
                _gradient_of_products(b, a, lanes.dot, total, factor, none, lanes.mean, from_logits, gradient)
            else:
                _gradient(b, a, lanes.dot, total, factor, none, lanes.mean, from_logits, gradient)
            store_columns(scratch.gradient, m, grad_neighbor[start:], scratch.corner)


@jit(inner=True)
def _load(anchor, neighbor, scratch):
    load_columns(anchor, scratch.zeros, scratch.anchor, scratch.corner)
    load_columns(neighbor, scratch.zeros, scratch.neighbor, scratch.corner)


@jit(inner=True)
def _weigh(a, b, from_logits, lanes):
    """Weights a, b of the probabilities, their sums and their dot product; logits become weights."""
    if from_logits:
        _exponentials(a, lanes.largest, lanes.of_anchor)
        _exponentials(b, lanes.largest, lanes.of_neighbor)
    else:
        lanes.of_anchor[:], lanes.of_neighbor[:] = 1, 1
    dot = lanes.dot
    dot[:] = 0
    for j in range(a.shape[0]):
        row, other = a[j], b[j]
        for lane in range(LANES):
            dot[lane] = multiply_add(row[lane], other[lane], dot[lane])


@jit(inner=True)
def _exponentials(x, largest, total):
    """Logits x (k, 64) become exp(x - largest), total their sum."""
    _keep_largest(x, largest)
    total[:] = 0
    for j in range(x.shape[0]):
        row = x[j]
        for lane in range(LANES):
            weight = exp(row[lane] - largest[lane])
            row[lane] = weight
            total[lane] += weight


@jit(inner=True)
def _mean_slope(a, slopes, lanes):
    """Mean of the slopes (k,) under p."""
    mean, total = lanes.mean, lanes.of_anchor
    mean[:] = 0
    for j in range(a.shape[0]):
        row, slope = a[j], slopes[j]
        for lane in range(LANES):
            mean[lane] = multiply_add(row[lane], slope, mean[lane])
    for lane in range(LANES):
        mean[lane] /= total[lane]


@jit(inner=True)
def _log_of_products(lanes):
    dot, of_a, of_b = lanes.dot, lanes.of_anchor, lanes.of_neighbor
    for lane in range(LANES):
        dot[lane] = dot[lane] / of_a[lane] / of_b[lane]
    _to_logarithm(dot)


@jit(inner=True)
def _gradient_of_products(a, b, dot, total, factor, slopes, mean, from_logits, gradient):
    """Of -factor ln <p, q> + slopes p with a = total p: to the logits of p, or to p."""
    one = a.dtype.type(1)
    inverse, share, level = np.empty(LANES, a.dtype), np.empty(LANES, a.dtype), np.empty(LANES, a.dtype)
    for lane in range(LANES):
        inverse[lane], share[lane], level[lane] = one / total[lane], factor / dot[lane], factor - mean[lane]
    for j in range(a.shape[0]):
        row, other, out, slope = a[j], b[j], gradient[j], slopes[j]
        if from_logits:
            for lane in range(LANES):
                out[lane] = row[lane] * (inverse[lane] * (level[lane] + slope) - other[lane] * share[lane])
        else:
            for lane in range(LANES):
                out[lane] = slope - other[lane] * share[lane]


@jit(inner=True)
def _keep_largest(x, largest):
    largest[:] = x[0]
    for j in range(1, x.shape[0]):
        row = x[j]
        for lane in range(LANES):
            largest[lane] = row[lane] if row[lane] > largest[lane] else largest[lane]


@jit(inner=True)
def _to_log_domain(a, b, from_logits, lanes):
    """Logits or probabilities a, b become logarithms, dot that of <p, q>; the lowest go where the sums were."""
    if from_logits:
        _log_softmax(a, lanes.largest, lanes.dot, lanes.of_anchor)
        _log_softmax(b, lanes.largest, lanes.dot, lanes.of_neighbor)
    else:
        _logarithms(a)
        _logarithms(b)
    _log_dot(a, b, lanes.largest, lanes.dot)


@jit(inner=True)
def _below_largest(x, largest):
    """Logits x (k, 64) become their distance to the row's largest, at most so far."""
    floor = x.dtype.type(-_FARTHEST)
    _keep_largest(x, largest)
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
def _gradient(a, b, dot, lowest, factor, slopes, mean, from_logits, gradient):
    """As :func:`_gradient_of_products`, of logarithms a of p and b of q; of logits 0 at the lowest."""
    for j in range(a.shape[0]):
        row, other, out, slope = a[j], b[j], gradient[j], slopes[j]
        if from_logits:
            for lane in range(LANES):
                p = exp(row[lane])
                value = factor * (p - exp(row[lane] + other[lane] - dot[lane])) + p * (slope - mean[lane])
                out[lane] = a.dtype.type(0) if row[lane] <= lowest[lane] else value
        else:
            for lane in range(LANES):
                out[lane] = slope - factor * exp(other[lane] - dot[lane])
