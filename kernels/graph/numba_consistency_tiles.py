"""Compiled blocks of the consistency of neighbours. A tile is (padded, 64): 64 rows in lanes, a cluster a row of it.

Dot products are sums of products; where one of 64 rows is so small that terms may have underflowed, these rows are
done again in the log domain. The backward pass makes the exponentials once more: reading them from memory takes as
long, and nothing is kept.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastdc.kernels._lanes import load_columns, make_corner, padded, store_columns
from fastdc.kernels._math import exp, log2
from fastdc.kernels._numba import jit
from fastdc.kernels._sweeps import add_sums_of_lanes, emit_exp, larger, make_sweep
from fastdc.kernels._vectors import LANES
from fastdc.kernels.graph.reference import FARTHEST

_LN2 = float(np.log(2.0))
_FARTHEST = float(FARTHEST)
_SMALL = 1e-20  # dot products below this may have lost terms that underflowed
_TINY_32, _TINY_64 = float(np.finfo(np.float32).tiny), float(np.finfo(np.float64).tiny)

# slots: of weights a, b with p = a / OF_A and q = b / OF_B
TOP_A, TOP_B, OF_A, OF_B, DOT, MEAN, INVERSE_A, INVERSE_B, SHARE, LEVEL = range(10)


class Scratch(NamedTuple):
    """What one worker owns."""

    anchor: NDArray  # (padded, 64)
    neighbor: NDArray  # (padded, 64)
    slopes: NDArray  # (padded, 64): a number a cluster
    lanes: NDArray  # (slots, 64)
    zeros: NDArray  # (padded,)
    corner: NDArray


def make_scratch(n_clusters: int, dtype: np.dtype) -> Scratch:
    anchor, neighbor, slopes = (np.zeros((padded(n_clusters), LANES), dtype) for _ in range(3))
    lanes, zeros = np.zeros((10, LANES), dtype), np.zeros(padded(n_clusters), dtype)
    return Scratch(anchor, neighbor, slopes, lanes, zeros, make_corner(dtype))


def _keep_larger(v: Any, lines: list[Any], constants: list[Any], sums: list[Any]) -> tuple[dict[int, Any], list[Any]]:
    return {}, [larger(v, value, so_far) for value, so_far in zip(lines, sums)]


def _weigh(v: Any, lines: list[Any], constants: list[Any], sums: list[Any]) -> tuple[dict[int, Any], list[Any]]:
    """Logits become weights; their sums, that of the products, and of the first times the slopes."""
    a, b = (emit_exp(v, v.builder.fsub(line, largest)) for line, largest in zip(lines, constants))
    of_a, of_b, dot, mean = sums
    add = v.builder.fadd
    return {0: a, 1: b}, [add(of_a, a), add(of_b, b), v.fma(a, b, dot), v.fma(a, lines[2], mean)]


def _multiply(v: Any, lines: list[Any], constants: list[Any], sums: list[Any]) -> tuple[dict[int, Any], list[Any]]:
    return {}, [v.fma(lines[0], lines[1], sums[0])]


def _to_logits(v: Any, lines: list[Any], constants: list[Any], sums: list[Any]) -> tuple[dict[int, Any], list[Any]]:
    """Gradients a (inverse_a (level + slope) - b share) and b (inverse_b - a share) in place of the weights."""
    (a, b, slope), (inverse_a, inverse_b, negative_share, level) = lines, constants
    multiply = v.builder.fmul
    of_a = v.fma(b, negative_share, multiply(inverse_a, v.builder.fadd(level, slope)))
    return {0: multiply(a, of_a), 1: multiply(b, v.fma(a, negative_share, inverse_b))}, []


def _to_probabilities(
    v: Any, lines: list[Any], constants: list[Any], sums: list[Any]
) -> tuple[dict[int, Any], list[Any]]:
    """Gradients slope - b share and -a share in place of the probabilities."""
    (a, b, slope), (negative_share,) = lines, constants
    return {0: v.fma(b, negative_share, slope), 1: v.builder.fmul(a, negative_share)}, []


_find_largest = make_sweep(_keep_larger, carried={TOP_A: -np.inf, TOP_B: -np.inf})
_make_weights = make_sweep(_weigh, given=(TOP_A, TOP_B), carried={OF_A: 0.0, OF_B: 0.0, DOT: 0.0, MEAN: 0.0})
_make_dot = make_sweep(_multiply, carried={DOT: 0.0})
_make_gradients = make_sweep(_to_logits, given=(INVERSE_A, INVERSE_B, SHARE, LEVEL))
_make_gradients_of_probabilities = make_sweep(_to_probabilities, given=(SHARE,))


@jit
def consistency_block(anchor, neighbor, from_logits, scratch, mass):
    """Sum over rows (m, k) of -ln <p_i, p_j>, float64; the anchors' sum into mass (k,) float64 unless of length 0."""
    k = anchor.shape[1]
    a, b, lanes = scratch.anchor[:k], scratch.neighbor[:k], scratch.lanes
    one, zero = anchor.dtype.type(1), anchor.dtype.type(0)
    dot, of_a, of_b, inverse = lanes[DOT], lanes[OF_A], lanes[OF_B], lanes[INVERSE_A]
    loss = 0.0
    mass[:] = 0.0
    scratch.slopes[:] = 0
    for start in range(0, anchor.shape[0], LANES):
        m = min(LANES, anchor.shape[0] - start)
        by_products = _load_weights(anchor[start : start + m], neighbor[start : start + m], from_logits, scratch)
        if mass.size > 0:
            for lane in range(LANES):
                inverse[lane] = one / of_a[lane] if lane < m else zero
            add_sums_of_lanes(a, inverse, mass)
        if by_products:
            for lane in range(LANES):
                dot[lane] = dot[lane] / of_a[lane] / of_b[lane]
            _to_logarithm(dot)
        else:
            _load(anchor[start : start + m], neighbor[start : start + m], scratch)
            _to_log_domain(a, b, from_logits, lanes)
        for lane in range(m):
            loss -= np.float64(dot[lane])
    return loss


@jit
def gradient_block(anchor, neighbor, from_logits, scratch, factor, slopes, grad_anchor, grad_neighbor):
    """Gradients of factor times that sum and of the sum of slopes (k,) p_i, into (m, k) unless these have no rows."""
    k = anchor.shape[1]
    a, b, lanes = scratch.anchor[:k], scratch.neighbor[:k], scratch.lanes
    mean, of_a = lanes[MEAN], lanes[OF_A]
    for j in range(k):
        scratch.slopes[j] = slopes[j]
    for start in range(0, anchor.shape[0], LANES):
        m = min(LANES, anchor.shape[0] - start)
        by_products = _load_weights(anchor[start : start + m], neighbor[start : start + m], from_logits, scratch)
        for lane in range(LANES):
            mean[lane] /= of_a[lane]
        if by_products:
            _gradients_of_products(factor, from_logits, scratch, k)
        else:
            _load(anchor[start : start + m], neighbor[start : start + m], scratch)
            _to_log_domain(a, b, from_logits, lanes)
            _gradients_of_logarithms(a, b, factor, slopes, from_logits, lanes)
        if grad_anchor.shape[0] > 0:
            store_columns(scratch.anchor, m, grad_anchor[start:], scratch.corner)
        if grad_neighbor.shape[0] > 0:
            store_columns(scratch.neighbor, m, grad_neighbor[start:], scratch.corner)


@jit(inner=True)
def _load(anchor, neighbor, scratch):
    load_columns(anchor, scratch.zeros, scratch.anchor, scratch.corner)
    load_columns(neighbor, scratch.zeros, scratch.neighbor, scratch.corner)


@jit(inner=True)
def _load_weights(anchor, neighbor, from_logits, scratch):
    """Weights of the first 64 rows, their sums and dot products; whether the latter are large enough."""
    k = anchor.shape[1]
    a, b, lanes = scratch.anchor, scratch.neighbor, scratch.lanes
    _load(anchor, neighbor, scratch)
    if from_logits:
        _find_largest(a, b, b, lanes, k)
        _make_weights(a, b, scratch.slopes, lanes, k)
    else:
        lanes[OF_A], lanes[OF_B], lanes[MEAN] = 1, 1, 0
        _make_dot(a, b, b, lanes, k)
    return lanes[DOT].min() > _SMALL  # NaN is not


@jit(inner=True)
def _gradients_of_products(factor, from_logits, scratch, k):
    lanes, one = scratch.lanes, scratch.lanes.dtype.type(1)
    for lane in range(LANES):
        lanes[INVERSE_A, lane] = one / lanes[OF_A, lane]
        lanes[INVERSE_B, lane] = factor / lanes[OF_B, lane]
        lanes[SHARE, lane] = -factor / lanes[DOT, lane]
        lanes[LEVEL, lane] = factor - lanes[MEAN, lane]
    if from_logits:
        _make_gradients(scratch.anchor, scratch.neighbor, scratch.slopes, lanes, k)
    else:
        _make_gradients_of_probabilities(scratch.anchor, scratch.neighbor, scratch.slopes, lanes, k)


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
        _log_softmax(a, lanes[TOP_A], lanes[DOT], lanes[OF_A])
        _log_softmax(b, lanes[TOP_A], lanes[DOT], lanes[OF_B])
    else:
        _logarithms(a)
        _logarithms(b)
    _log_dot(a, b, lanes[TOP_A], lanes[DOT])


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
def _gradients_of_logarithms(a, b, factor, slopes, from_logits, lanes):
    """As ``_to_logits`` and ``_to_probabilities``, of logarithms a of p and b of q; of logits 0 at the lowest."""
    zero = a.dtype.type(0)
    dot, mean, lowest_a, lowest_b = lanes[DOT], lanes[MEAN], lanes[OF_A], lanes[OF_B]
    for j in range(a.shape[0]):
        for lane in range(LANES):
            log_p, log_q = a[j, lane], b[j, lane]
            if from_logits:
                p, share = exp(log_p), factor * exp(log_p + log_q - dot[lane])
                of_a = factor * p - share + p * (slopes[j] - mean[lane])
                a[j, lane] = zero if log_p <= lowest_a[lane] else of_a
                b[j, lane] = zero if log_q <= lowest_b[lane] else factor * exp(log_q) - share
            else:
                a[j, lane] = slopes[j] - factor * exp(log_q - dot[lane])
                b[j, lane] = -factor * exp(log_p - dot[lane])
