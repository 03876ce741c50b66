"""Compiled blocks of the CPU kernels over the entropies of logits, on tiles and sweeps of ``_sweeps.py``."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastdc.kernels._lanes import make_corner, padded
from fastdc.kernels._math import log2
from fastdc.kernels._numba import jit
from fastdc.kernels._sweeps import (
    MANY,
    add_mass,
    emit_exp,
    emit_largest,
    fill_tile,
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
_FARTHEST = 1000.0  # a logit this far below the row's largest, or minus infinity, has p = 0: 0 times it must be 0
LARGEST, TOTAL, EXPECTED, FACTOR, MEAN, INVERSE = range(6)  # slots


class Scratch(NamedTuple):
    """What one worker owns."""

    tile: NDArray  # a tile: distances d to the row's largest logit
    weights: NDArray  # exp(d)
    slopes: NDArray  # a number a cluster
    lanes: NDArray  # (slots, 64)
    zeros: NDArray
    corner: NDArray


def make_scratch(n_clusters: int, dtype: np.dtype[Any]) -> Scratch:
    tile, weights, slopes = (make_tile(n_clusters, dtype) for _ in range(3))
    zeros = np.zeros(padded(n_clusters), dtype)
    return Scratch(tile, weights, slopes, np.zeros((6, LANES), dtype), zeros, make_corner(dtype))


def _weigh(v: Any, lines: list[Any], constants: list[Any], sums: list[Any]) -> tuple[dict[int, Any], list[Any]]:
    """d, exp(d), their sums."""
    (largest,), (total, weighted), floor = constants, sums, v.constant(-_FARTHEST)
    below = v.builder.fsub(lines[0], largest)
    below = v.builder.select(v.builder.fcmp_ordered("<", below, floor), floor, below)  # leaves NaN
    weight = emit_exp(v, below)
    return {0: below, 1: weight}, [v.builder.fadd(total, weight), v.fma(weight, below, weighted)]


def _tilt(v: Any, lines: list[Any], constants: list[Any], sums: list[Any]) -> tuple[dict[int, Any], list[Any]]:
    """Sum of exp(d) t, t = slope - factor d, which takes the place of d."""
    (distance, weight, slope), (negative_factor,), (total,) = lines, constants, sums
    tilted = v.fma(negative_factor, distance, slope)
    return {0: tilted}, [v.fma(weight, tilted, total)]


def _differentiate(v: Any, lines: list[Any], constants: list[Any], sums: list[Any]) -> tuple[dict[int, Any], list[Any]]:
    """p (t - E[t]) in place of t."""
    (tilted, weight, _), (inverse, mean) = lines, constants
    return {0: v.builder.fmul(v.builder.fmul(weight, inverse), v.builder.fsub(tilted, mean))}, []


_find_largest = make_sweep(emit_largest, carried={LARGEST: -np.inf})
_make_weights = make_sweep(_weigh, given=(LARGEST,), carried={TOTAL: 0.0, EXPECTED: 0.0})
_make_tilted = make_sweep(_tilt, given=(FACTOR,), carried={MEAN: 0.0})
_make_gradient = make_sweep(_differentiate, given=(INVERSE, MEAN))


@jit
def logit_block(x, scratch, entropy, mass):
    """Entropy of softmax of rows x (m, k) into entropy (m,), or none wanted (0,); their sum into mass (k,) float64."""
    k = x.shape[1]
    step, lanes = rows_a_tile(k), scratch.lanes
    total, expected, inverse = lanes[TOTAL], lanes[EXPECTED], lanes[INVERSE]
    ln2 = x.dtype.type(_LN2)
    mass[:] = 0.0
    for start in range(0, x.shape[0], step):
        m = min(step, x.shape[0] - start)
        _exponentials(x[start : start + m], scratch)
        if entropy.shape[0] > 0:
            for lane in range(m):
                entropy[start + lane] = log2(total[lane]) * ln2 - expected[lane]
        for lane in range(LANES):
            inverse[lane] = x.dtype.type(1) / total[lane] if lane < m else x.dtype.type(0)
        add_mass(scratch.weights, inverse, mass)


@jit(inner=True)
def _exponentials(x, scratch):
    """Weights of the first rows of x (m, k), their total, and the expected d."""
    k = x.shape[1]
    tile, weights, lanes = scratch.tile, scratch.weights, scratch.lanes
    load_tile(x, -np.inf, tile, scratch.zeros, scratch.corner)
    _find_largest(tile, tile, tile, lanes, k)
    share_largest(k, lanes[LARGEST])
    _make_weights(tile, weights, weights, lanes, k)
    share_sum(k, lanes[TOTAL])
    share_sum(k, lanes[EXPECTED])
    total, expected = lanes[TOTAL], lanes[EXPECTED]
    for lane in range(LANES):
        expected[lane] /= total[lane]


@jit
def logit_backward_block(x, scratch, grad_entropy, grad_mass, grad):
    """Gradient of rows x (m, k) of logits into grad (m, k): p (t - E[t]), t = grad_mass - grad_entropy d."""
    k = x.shape[1]
    step, lanes = rows_a_tile(k), scratch.lanes
    total, factor, mean, inverse = lanes[TOTAL], lanes[FACTOR], lanes[MEAN], lanes[INVERSE]
    fill_tile(grad_mass, scratch.slopes)
    for start in range(0, x.shape[0], step):
        m = min(step, x.shape[0] - start)
        _exponentials(x[start : start + m], scratch)
        if k > MANY:
            factor[:] = -grad_entropy[start]
        else:
            for lane in range(m):
                factor[lane] = -grad_entropy[start + lane]
        _make_tilted(scratch.tile, scratch.weights, scratch.slopes, lanes, k)
        share_sum(k, mean)
        for lane in range(LANES):
            inverse[lane] = x.dtype.type(1) / total[lane]
            mean[lane] *= inverse[lane]
        _make_gradient(scratch.tile, scratch.weights, scratch.weights, lanes, k)
        store_tile(scratch.tile, m, grad[start:], scratch.corner)
