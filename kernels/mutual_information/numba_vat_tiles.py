"""Compiled blocks of the divergence of perturbed predictions, on tiles and sweeps of ``_sweeps.py``."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastdc.kernels._lanes import make_corner, padded
from fastdc.kernels._math import exp, exp_beyond_line, log2
from fastdc.kernels._numba import jit
from fastdc.kernels._sweeps import (
    MANY,
    emit_exp,
    emit_exp_beyond_line,
    larger,
    load_tile,
    make_sweep,
    make_tile,
    rows_a_tile,
    share_largest,
    share_sum,
    store_tile,
)
from fastdc.kernels._vectors import LANES

_LN2 = float(np.log(2.0))
_STEEPEST = 60.0  # perturbations larger than this leave the form in which nothing cancels
_NEAR = 1.0  # perturbations smaller than this need no exponential
LARGEST, STEEPEST, FLATTEST, TOTAL, EXPECTED, DIVERGENCE, SHIFT, FACTOR, OFFSET = range(9)  # slots


class Scratch(NamedTuple):
    """What one worker owns."""

    weights: NDArray  # a tile
    tile: NDArray  # a tile
    lanes: NDArray  # (slots, 64)
    zeros: NDArray
    corner: NDArray


def make_scratch(n_clusters: int, dtype: np.dtype[Any]) -> Scratch:
    weights, tile = make_tile(n_clusters, dtype), make_tile(n_clusters, dtype)
    zeros = np.zeros(padded(n_clusters), dtype)
    return Scratch(weights, tile, np.zeros((9, LANES), dtype), zeros, make_corner(dtype))


def _make_extremes(subtract: bool) -> Any:
    def body(v: Any, lines: list[Any], constants: list[Any], sums: list[Any]) -> tuple[dict[int, Any], list[Any]]:
        """The largest logit, difference d and -d."""
        logit, difference, _ = lines
        if subtract:
            difference = v.builder.fsub(difference, logit)
        negative = v.builder.fsub(v.zeros(), difference)
        found = [larger(v, value, so_far) for value, so_far in zip((logit, difference, negative), sums)]
        return {1: difference} if subtract else {}, found

    return make_sweep(body, carried={LARGEST: -np.inf, STEEPEST: -np.inf, FLATTEST: -np.inf})


def _weigh(v: Any, lines: list[Any], constants: list[Any], sums: list[Any]) -> tuple[dict[int, Any], list[Any]]:
    """Logits become weights; their sum and that of weight times d."""
    (logit, difference, _), (largest,), (total, weighted) = lines, constants, sums
    weight = emit_exp(v, v.builder.fsub(logit, largest))
    return {0: weight}, [v.builder.fadd(total, weight), v.fma(weight, difference, weighted)]


def _make_growth(near_zero: bool) -> Any:
    def body(v: Any, lines: list[Any], constants: list[Any], sums: list[Any]) -> tuple[dict[int, Any], list[Any]]:
        """Differences become e^t - 1; the sums of weight times e^t - 1 - t, and times t."""
        (weight, difference, _), (expected,), (divergence, shift) = lines, constants, sums
        t = v.builder.fsub(difference, expected)
        excess = emit_exp_beyond_line(v, t, near_zero)
        return {1: v.builder.fadd(t, excess)}, [v.fma(weight, excess, divergence), v.fma(weight, t, shift)]

    return make_sweep(body, given=(EXPECTED,), carried={DIVERGENCE: 0.0, SHIFT: 0.0})


def _differentiate(v: Any, lines: list[Any], constants: list[Any], sums: list[Any]) -> tuple[dict[int, Any], list[Any]]:
    """q - p = p (e^(t - KL) - 1) in place of e^t - 1: to its last digits where q is near p."""
    (weight, growth, _), (factor, offset) = lines, constants
    return {1: v.builder.fmul(weight, v.fma(growth, factor, offset))}, []


_find_extremes, _subtract_and_find_extremes = _make_extremes(False), _make_extremes(True)
_make_weights = make_sweep(_weigh, given=(LARGEST,), carried={TOTAL: 0.0, EXPECTED: 0.0})
_grow, _grow_near_zero = _make_growth(False), _make_growth(True)
_make_gradient = make_sweep(_differentiate, given=(FACTOR, OFFSET))


@jit
def vat_block(logits, perturbed, scratch, grad):
    """Sum over rows of KL(softmax(logits) || softmax(perturbed)), float64; gradient to perturbed into grad (m, k).

    grad of no rows is not wanted.
    """
    k = logits.shape[1]
    step, lanes = rows_a_tile(k), scratch.lanes
    gentle = np.empty(LANES, np.bool_)
    loss = 0.0
    for start in range(0, logits.shape[0], step):
        m = min(step, logits.shape[0] - start)
        _load(logits[start : start + m], perturbed[start : start + m], scratch)
        _gentle_divergence(k, scratch.weights, scratch.tile, lanes, gentle)
        if grad.shape[0] > 0:
            _gentle_gradient(k, scratch.weights, scratch.tile, lanes)
        for lane in range(m):
            if gentle[lane]:
                loss += np.float64(lanes[DIVERGENCE, lane]) - np.float64(lanes[SHIFT, lane])
            else:
                loss += _any_divergence(logits[start + lane], perturbed[start + lane], scratch.tile.reshape(-1), lane)
        if grad.shape[0] > 0:
            store_tile(scratch.tile, m, grad[start:], scratch.corner)
    return loss


@jit(inner=True)
def _load(logits, perturbed, scratch):
    """Logits as weights, differences as tile, and their extremes."""
    k = logits.shape[1]
    a, b, lanes = scratch.weights, scratch.tile, scratch.lanes
    load_tile(logits, -np.inf, a, scratch.zeros, scratch.corner)
    if k > MANY:
        difference, before, after = b[0], logits[0], perturbed[0]
        for j in range(k):
            difference[j] = after[j] - before[j]
        difference[k:] = difference[0]
        _find_extremes(a, b, b, lanes, k)
    else:
        load_tile(perturbed, 0.0, b, scratch.zeros, scratch.corner)
        _subtract_and_find_extremes(a, b, b, lanes, k)


@jit(inner=True)
def _gentle_divergence(k, a, b, lanes, gentle):
    """KL = ln(1 + E[e^t - 1 - t]), t = d - E[d]: every term is positive, nothing cancels where d is small.

    E[d] is rounded, so that E[t] is not quite zero: that is the shift, and the divergence here is KL + shift.
    Logits a become exp(a - largest), differences b become e^t - 1. Lanes are not gentle, and their numbers void,
    where a perturbation is too large for this form or not finite.
    """
    number = a.dtype.type
    share_largest(k, lanes[LARGEST])
    share_largest(k, lanes[STEEPEST])
    share_largest(k, lanes[FLATTEST])
    _make_weights(a, b, b, lanes, k)
    share_sum(k, lanes[TOTAL])
    share_sum(k, lanes[EXPECTED])
    is_near = True
    for lane in range(LANES):
        lanes[EXPECTED, lane] /= lanes[TOTAL, lane]
        above = lanes[STEEPEST, lane] - lanes[EXPECTED, lane]
        below = lanes[FLATTEST, lane] + lanes[EXPECTED, lane]
        gentle[lane] = above < number(_STEEPEST)  # false also where one is NaN or infinite
        is_near &= above < number(_NEAR) and below < number(_NEAR)
    if is_near:
        _grow_near_zero(a, b, b, lanes, k)
    else:
        _grow(a, b, b, lanes, k)
    share_sum(k, lanes[DIVERGENCE])
    share_sum(k, lanes[SHIFT])
    for lane in range(LANES):
        inverse = number(1) / lanes[TOTAL, lane]
        lanes[SHIFT, lane] *= inverse
        lanes[DIVERGENCE, lane] = lanes[DIVERGENCE, lane] * inverse + lanes[SHIFT, lane]
    _log_one_plus(lanes[DIVERGENCE])


@jit(inner=True)
def _log_one_plus(z):
    """z (64,) becomes ln(1 + z), to its last digits where z is small."""
    one, ln2 = z.dtype.type(1), z.dtype.type(_LN2)
    for lane in range(LANES):
        whole = one + z[lane]
        rounded = whole - one
        value = log2(whole) * ln2 * (z[lane] / rounded)
        z[lane] = z[lane] if rounded == 0 or whole != whole else value


@jit(inner=True)
def _gentle_gradient(k, weights, growth, lanes):
    for lane in range(LANES):
        divergence, inverse = lanes[DIVERGENCE, lane], weights.dtype.type(1) / lanes[TOTAL, lane]
        lanes[FACTOR, lane] = exp(-divergence) * inverse
        lanes[OFFSET, lane] = (exp_beyond_line(-divergence) - divergence) * inverse
    _make_gradient(weights, growth, growth, lanes, k)


@jit(inner=True)
def _any_divergence(a, b, tile, lane):
    """KL of one row (k,) from its two softmaxes, in float64: for any perturbation. q - p goes into its lane."""
    stride = 1 if a.size > MANY else LANES
    a_largest, b_largest = float(a[0]), float(b[0])
    for j in range(1, a.shape[0]):
        a_largest = a[j] if a[j] > a_largest else a_largest
        b_largest = b[j] if b[j] > b_largest else b_largest
    a_total, b_total = 0.0, 0.0
    for j in range(a.shape[0]):
        a_total += math.exp(a[j] - a_largest)
        b_total += math.exp(b[j] - b_largest)
    a_shift, b_shift = a_largest + math.log(a_total), b_largest + math.log(b_total)
    divergence = 0.0
    for j in range(a.shape[0]):
        p = math.exp(a[j] - a_shift)
        if p != 0.0:  # also NaN
            divergence += p * ((a[j] - a_shift) - (b[j] - b_shift))
        tile[lane + j * stride] = math.exp(b[j] - b_shift) - p
    return divergence
