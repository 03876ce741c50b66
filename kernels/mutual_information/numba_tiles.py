"""Compiled blocks of the CPU kernels of probabilities.

A tile is (padded, 64): 64 rows in lanes, a cluster a row of the tile. A lane without a row repeats the last one; what
it would add to a sum is left out.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastdc.kernels._lanes import load_columns, make_corner, padded, store_columns
from fastdc.kernels._math import add_compensated, log2
from fastdc.kernels._numba import jit
from fastdc.kernels._sweeps import add_sums_of_lanes
from fastdc.kernels._vectors import LANES

_LN2 = float(np.log(2.0))
_TINY_32, _TINY_64 = float(np.finfo(np.float32).tiny), float(np.finfo(np.float64).tiny)


class Scratch(NamedTuple):
    """What one worker owns."""

    tile: NDArray  # (padded, 64)
    zeros: NDArray  # (padded,)
    corner: NDArray


def make_scratch(n_clusters: int, dtype: np.dtype[Any]) -> Scratch:
    shape = padded(n_clusters), LANES
    zeros = np.zeros(shape[0], dtype)
    return Scratch(np.empty(shape, dtype), zeros, make_corner(dtype))


@jit(inline=True)
def _tiny(array):
    """Smallest normal number."""
    return array.dtype.type(_TINY_32 if array.itemsize == 4 else _TINY_64)


@jit(inline=True)
def _add_row(total, lost, row):
    """Thousands of small p beside a large one must not be lost."""
    for lane in range(LANES):
        add_compensated(total, lost, lane, row[lane])


@jit
def probability_block(x, scratch, entropy, mass):
    """Entropy of rows x (m, k) into entropy (m,), or none wanted (0,); their sum into mass (k,) float64."""
    k = x.shape[1]
    disorder = np.empty(LANES, x.dtype)
    present = np.empty(LANES, x.dtype)
    mass[:] = 0.0
    for start in range(0, x.shape[0], LANES):
        part = x[start : start + LANES]
        load_columns(part, scratch.zeros, scratch.tile, scratch.corner)
        for lane in range(LANES):
            present[lane] = x.dtype.type(1 if lane < part.shape[0] else 0)
        add_sums_of_lanes(scratch.tile[:k], present, mass)
        if entropy.shape[0] > 0:
            _disorder(scratch.tile[:k], disorder)
            for lane in range(part.shape[0]):
                entropy[start + lane] = disorder[lane]


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
def probability_backward_block(x, scratch, grad_entropy, grad_mass, grad):
    """Gradient of rows x (m, k) into grad (m, k); grad_entropy (m,), grad_mass (k,)."""
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
