"""Compiled blocks of the CPU kernels. A tile is (padded, 64): 64 rows in lanes, a cluster a row of the tile.

A lane without a row repeats the last one; what it would add to a sum is left out.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastdc.kernels._lanes import load_columns, make_corner, padded, store_columns
from fastdc.kernels._math import exp, exp_beyond_line, log2
from fastdc.kernels._numba import jit
from fastdc.kernels._vectors import LANES

_LN2 = float(np.log(2.0))
_FARTHEST = 1000.0  # a logit this far below the row's largest, or minus infinity, has p = 0: 0 times it must be 0
_STEEPEST = 60.0  # perturbations larger than this leave the form in which nothing cancels
_TINY_32, _TINY_64 = float(np.finfo(np.float32).tiny), float(np.finfo(np.float64).tiny)


class Scratch(NamedTuple):
    """What one worker owns."""

    tile: NDArray  # (padded, 64)
    other: NDArray  # (padded, 64)
    zeros: NDArray  # (padded,)
    corner: NDArray


class Lanes(NamedTuple):
    """A number a row."""

    largest: NDArray  # (64,) logit
    total: NDArray  # (64,) sum of exp(logit - largest)
    expected: NDArray  # (64,) a mean under p


def make_scratch(n_clusters: int, dtype: np.dtype[Any]) -> Scratch:
    shape = padded(n_clusters), LANES
    zeros = np.zeros(shape[0], dtype)
    return Scratch(np.empty(shape, dtype), np.empty(shape, dtype), zeros, make_corner(dtype))


@jit(inline=True)
def make_lanes(dtype):
    return Lanes(np.empty(LANES, dtype), np.empty(LANES, dtype), np.empty(LANES, dtype))


@jit(inline=True)
def _tiny(array):
    """Smallest normal number."""
    return array.dtype.type(_TINY_32 if array.itemsize == 4 else _TINY_64)


@jit(inline=True)
def _add(total, lost, lane, value):
    """Compensated sum: thousands of small p beside a large one must not be lost."""
    corrected = value - lost[lane]
    larger = total[lane] + corrected
    lost[lane] = (larger - total[lane]) - corrected
    total[lane] = larger


# A loop touches few arrays at once: only then does LLVM prove that they do not overlap, and vectorises.


@jit(inline=True)
def _keep_larger(largest, row):
    for lane in range(LANES):
        largest[lane] = row[lane] if row[lane] > largest[lane] else largest[lane]


@jit(inline=True)
def _add_row(total, lost, row):
    for lane in range(LANES):
        _add(total, lost, lane, row[lane])


@jit(inline=True)
def _add_product(total, lost, a, b):
    for lane in range(LANES):
        _add(total, lost, lane, a[lane] * b[lane])


@jit
def logit_block(x, scratch, entropy, mass):
    """Entropy of softmax of rows x (m, k) into entropy (m,), or none wanted (0,); their sum into mass (k,) float64."""
    k = x.shape[1]
    lanes = make_lanes(x.dtype)
    mass[:] = 0.0
    for start in range(0, x.shape[0], LANES):
        part = x[start : start + LANES]
        load_columns(part, scratch.zeros, scratch.tile, scratch.corner)
        _exponentials(scratch.tile[:k], scratch.other[:k], lanes)
        if entropy.shape[0] > 0:
            _logarithm(lanes.total, lanes.largest)
            for lane in range(part.shape[0]):
                entropy[start + lane] = lanes.largest[lane] - lanes.expected[lane]
        for lane in range(LANES):
            lanes.total[lane] = x.dtype.type(1) / lanes.total[lane] if lane < part.shape[0] else x.dtype.type(0)
        add_mass(scratch.other[:k], lanes.total, mass)


@jit
def probability_block(x, scratch, entropy, mass):
    """The same of rows x of probabilities."""
    k = x.shape[1]
    disorder = np.empty(LANES, x.dtype)
    present = np.empty(LANES, x.dtype)
    mass[:] = 0.0
    for start in range(0, x.shape[0], LANES):
        part = x[start : start + LANES]
        load_columns(part, scratch.zeros, scratch.tile, scratch.corner)
        for lane in range(LANES):
            present[lane] = x.dtype.type(1 if lane < part.shape[0] else 0)
        add_mass(scratch.tile[:k], present, mass)
        if entropy.shape[0] > 0:
            _disorder(scratch.tile[:k], disorder)
            for lane in range(part.shape[0]):
                entropy[start + lane] = disorder[lane]


@jit(inner=True)
def _exponentials(tile, weights, lanes):
    """Logits in tile become their distance d to the row's largest; weights exp(d); total their sum, expected E[d]."""
    largest, total, expected = lanes
    zero, one, floor = tile.dtype.type(0), tile.dtype.type(1), tile.dtype.type(-_FARTHEST)
    lost, lost_too = np.zeros(LANES, tile.dtype), np.zeros(LANES, tile.dtype)
    for lane in range(LANES):
        largest[lane], total[lane], expected[lane] = tile[0, lane], zero, zero
    for j in range(1, tile.shape[0]):
        _keep_larger(largest, tile[j])
    for j in range(tile.shape[0]):
        row, weight = tile[j], weights[j]
        for lane in range(LANES):
            below = row[lane] - largest[lane]
            below = floor if below < floor else below  # leaves NaN
            row[lane] = below
            weight[lane] = exp(below)
        _add_row(total, lost, weight)
        _add_product(expected, lost_too, weight, row)
    for lane in range(LANES):
        expected[lane] *= one / total[lane]


@jit(inner=True)
def _logarithm(x, out):
    """ln of each lane; NaN of NaN."""
    ln2 = x.dtype.type(_LN2)
    for lane in range(LANES):
        value = log2(x[lane]) * ln2
        out[lane] = value if x[lane] == x[lane] else x[lane]


@jit(inner=True, reassociate=True)
def add_mass(weights, factor, mass):
    """Sum over lanes of the weights (k, 64) times the factor (64,), added to mass (k,) float64."""
    for j in range(weights.shape[0]):
        total = weights.dtype.type(0)
        row = weights[j]
        for lane in range(LANES):
            total += row[lane] * factor[lane]
        mass[j] += total


@jit(inner=True)
def _disorder(p, disorder):
    """-sum p ln p of each lane; p becomes p log2 p."""
    zero, ln2, tiny = p.dtype.type(0), p.dtype.type(_LN2), _tiny(p)
    lost = np.zeros(LANES, p.dtype)
    for lane in range(LANES):
        disorder[lane] = zero
    for j in range(p.shape[0]):
        row = p[j]
        for lane in range(LANES):
            value = row[lane]
            row[lane] = value * log2(value if value > tiny else tiny)
        _add_row(disorder, lost, row)
    for lane in range(LANES):
        disorder[lane] *= -ln2


@jit
def logit_backward_block(x, scratch, grad_entropy, grad_mass, grad):
    """Gradient of rows x (m, k) of logits into grad (m, k); grad_entropy (m,), grad_mass (k,)."""
    k = x.shape[1]
    lanes = make_lanes(x.dtype)
    factor = np.zeros(LANES, x.dtype)
    for start in range(0, x.shape[0], LANES):
        part = x[start : start + LANES]
        load_columns(part, scratch.zeros, scratch.tile, scratch.corner)
        _exponentials(scratch.tile[:k], scratch.other[:k], lanes)
        for lane in range(part.shape[0]):
            factor[lane] = grad_entropy[start + lane]
        _logit_gradient(scratch.tile[:k], scratch.other[:k], factor, grad_mass, lanes)
        store_columns(scratch.tile, part.shape[0], grad[start:], scratch.corner)


@jit(inner=True)
def _logit_gradient(tile, weights, factor, grad_mass, lanes):
    """Distances d in tile become p (t - E[t]), t = grad_mass - factor d."""
    zero, one = tile.dtype.type(0), tile.dtype.type(1)
    _, total, expected = lanes
    lost = np.zeros(LANES, tile.dtype)
    inverse = np.empty(LANES, tile.dtype)
    for lane in range(LANES):
        expected[lane] = zero
        inverse[lane] = one / total[lane]
    for j in range(tile.shape[0]):
        row, slope = tile[j], grad_mass[j]
        for lane in range(LANES):
            row[lane] = slope - factor[lane] * row[lane]
        _add_product(expected, lost, weights[j], row)
    for lane in range(LANES):
        expected[lane] *= inverse[lane]
    for j in range(tile.shape[0]):
        row, weight = tile[j], weights[j]
        for lane in range(LANES):
            row[lane] = weight[lane] * inverse[lane] * (row[lane] - expected[lane])


@jit
def probability_backward_block(x, scratch, grad_entropy, grad_mass, grad):
    """The same of rows x of probabilities."""
    k = x.shape[1]
    factor = np.zeros(LANES, x.dtype)
    for start in range(0, x.shape[0], LANES):
        part = x[start : start + LANES]
        load_columns(part, scratch.zeros, scratch.tile, scratch.corner)
        for lane in range(part.shape[0]):
            factor[lane] = grad_entropy[start + lane]
        _probability_gradient(scratch.tile[:k], factor, grad_mass)
        store_columns(scratch.tile, part.shape[0], grad[start:], scratch.corner)


@jit(inner=True)
def _probability_gradient(tile, factor, grad_mass):
    zero, one, ln2 = tile.dtype.type(0), tile.dtype.type(1), tile.dtype.type(_LN2)
    tiny = _tiny(tile)
    for j in range(tile.shape[0]):
        row, slope = tile[j], grad_mass[j]
        for lane in range(LANES):
            p = row[lane]
            logarithm = log2(p if p > tiny else tiny) * ln2 + (zero if p < tiny else one)
            row[lane] = slope - factor[lane] * logarithm


@jit
def vat_block(logits, perturbed, scratch, grad):
    """Sum over rows of KL(softmax(logits) || softmax(perturbed)), float64; gradient to perturbed into grad (m, k).

    grad of no rows is not wanted.
    """
    k = logits.shape[1]
    lanes = make_lanes(logits.dtype)
    divergence = np.empty(LANES, logits.dtype)
    gentle = np.empty(LANES, np.bool_)
    a, b = scratch.other[:k], scratch.tile[:k]
    loss = 0.0
    for start in range(0, logits.shape[0], LANES):
        m = min(LANES, logits.shape[0] - start)
        load_columns(logits[start : start + m], scratch.zeros, scratch.other, scratch.corner)
        load_columns(perturbed[start : start + m], scratch.zeros, scratch.tile, scratch.corner)
        _gentle_divergence(a, b, lanes, divergence, gentle)
        if grad.shape[0] > 0:
            _gentle_gradient(a, b, lanes.total, divergence)
        for lane in range(m):
            if gentle[lane]:
                loss += divergence[lane]
            else:
                loss += _any_divergence(logits[start + lane], perturbed[start + lane], b[:, lane])
        if grad.shape[0] > 0:
            store_columns(scratch.tile, m, grad[start:], scratch.corner)
    return loss


@jit(inner=True)
def _gentle_divergence(a, b, lanes, divergence, gentle):
    """KL = ln(1 + E[e^t - 1 - t]), t = (b - a) - E[b - a]: every term is positive, nothing cancels where b is near a.

    a becomes exp(a - largest), b becomes e^t - 1. Lanes are not gentle, and their numbers void, where a
    perturbation is too large for this form or not finite.
    """
    largest, total, expected = lanes
    zero, one = a.dtype.type(0), a.dtype.type(1)
    lost, lost_too = np.zeros(LANES, a.dtype), np.zeros(LANES, a.dtype)
    steepest, excess = np.empty(LANES, a.dtype), np.empty(LANES, a.dtype)
    for lane in range(LANES):
        largest[lane], total[lane], expected[lane] = a[0, lane], zero, zero
        steepest[lane] = b[0, lane] - a[0, lane]
    for j in range(1, a.shape[0]):
        _keep_larger(largest, a[j])
    for j in range(a.shape[0]):
        weight, difference = a[j], b[j]
        for lane in range(LANES):
            difference[lane] -= weight[lane]
            weight[lane] = exp(weight[lane] - largest[lane])
        _keep_larger(steepest, difference)
        _add_row(total, lost, weight)
        _add_product(expected, lost_too, weight, difference)
    for lane in range(LANES):
        expected[lane] *= one / total[lane]
        # false also where one is NaN or infinite
        gentle[lane] = steepest[lane] - expected[lane] < a.dtype.type(_STEEPEST)
        divergence[lane], lost[lane] = zero, zero
    for j in range(a.shape[0]):
        row, weight = b[j], a[j]
        for lane in range(LANES):
            row[lane] -= expected[lane]
            excess[lane] = exp_beyond_line(row[lane])
        _add_product(divergence, lost, weight, excess)
        for lane in range(LANES):
            row[lane] += excess[lane]
    for lane in range(LANES):
        divergence[lane] *= one / total[lane]
    _log_one_plus(divergence, expected)


@jit(inner=True)
def _log_one_plus(z, whole):
    """z becomes ln(1 + z), to its last digits where z is small; whole is scratch."""
    zero, one = z.dtype.type(0), z.dtype.type(1)
    logarithm = np.empty(LANES, z.dtype)
    for lane in range(LANES):
        whole[lane] = one + z[lane]
    _logarithm(whole, logarithm)
    for lane in range(LANES):
        rounded = whole[lane] - one
        z[lane] = z[lane] if rounded == zero else logarithm[lane] * (z[lane] / rounded)


@jit(inner=True)
def _gentle_gradient(weights, growth, total, divergence):
    """q - p = p (e^(t - KL) - 1) in place of growth = e^t - 1: to its last digits where q is near p."""
    one = total.dtype.type(1)
    factor = np.empty(LANES, total.dtype)
    offset = np.empty(LANES, total.dtype)
    for lane in range(LANES):
        inverse = one / total[lane]
        factor[lane] = exp(-divergence[lane]) * inverse
        offset[lane] = (exp_beyond_line(-divergence[lane]) - divergence[lane]) * inverse
    for j in range(weights.shape[0]):
        row, weight = growth[j], weights[j]
        for lane in range(LANES):
            row[lane] = weight[lane] * (row[lane] * factor[lane] + offset[lane])


@jit(inner=True)
def _any_divergence(a, b, gradient):
    """KL of one row (k,) from its two softmaxes, in float64: for perturbations of any size. gradient: q - p."""
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
        gradient[j] = math.exp(b[j] - b_shift) - p
    return divergence
