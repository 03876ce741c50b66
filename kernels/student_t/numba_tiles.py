"""Compiled blocks of the CPU kernels. A tile is (n_clusters, 64): 64 rows in lanes, their last ones unused.

Functions of a tile are given all rows of the block from the tile's first on, and treat up to 64 of them: so a
vector load may run into the next row.

``slope`` is 1 / (1 + d^2 / alpha), the factor that the gradient of a distance carries; for alpha = 1 it is q
times the row's mass and is not stored.

The usual alpha = 1 and exponent = 2 are given as None: machine code for the general forms is made only where
they are asked for.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastdc.kernels import _tile
from fastdc.kernels._math import add_compensated, log2, power
from fastdc.kernels._numba import jit
from fastdc.kernels._tile import gradient_tile, load_rows, sq_distance_tile
from fastdc.kernels._vectors import LANES

LN2 = float(np.log(2.0))


class Scratch(NamedTuple):
    """What one worker owns."""

    rows: _tile.Scratch
    q: NDArray  # (n_clusters, 64)
    slope: NDArray  # (n_clusters, 64), or (0, 64) where alpha = 1
    mass: NDArray  # (64,) sum of the kernel over centers
    gradient: NDArray  # (padded, 64)


@jit(inline=True)
def slope_of(scratch, alpha, j, lane):
    """1 / (1 + d^2 / alpha) while scratch.q holds q."""
    return scratch.q[j, lane] * scratch.mass[lane] if alpha is None else scratch.slope[j, lane]


@jit(inline=True)
def raised(value, exponent):
    return value * value if exponent is None else power(value, exponent)


@jit(inner=True)
def steepness(alpha):
    """(alpha + 1) / alpha: the gradient of ln q to a distance carries it."""
    return 2.0 if alpha is None else (alpha + 1.0) / alpha


@jit
def assign_block(x, centers, scratch, alpha, q_out):
    """q of rows x (m, d) into q_out (m, k)."""
    for start in range(0, x.shape[0], LANES):
        part = x[start:]
        assign_tile(part, centers, scratch, alpha)
        for lane in range(min(LANES, part.shape[0])):
            for j in range(q_out.shape[1]):
                q_out[start + lane, j] = scratch.q[j, lane]


@jit(inner=True, reassociate=True)
def add_frequency(q, frequency):
    """Add the sums of q over lanes to frequency (k,) float64."""
    for j in range(q.shape[0]):
        total = q.dtype.type(0)
        tile = q[j]
        for lane in range(LANES):
            total += tile[lane]
        frequency[j] += total


@jit
def statistics_block(x, centers, scratch, alpha, out, frequency):
    """labels, confidence and entropy of rows x into out; sum of q into frequency (k,)."""
    labels, confidence, entropy = out
    frequency[:] = 0.0
    nearest = np.empty(LANES, np.int64)
    largest = np.empty(LANES, x.dtype)
    disorder = np.empty(LANES, x.dtype)
    for start in range(0, x.shape[0], LANES):
        part = x[start:]
        load_rows(part, centers, scratch.rows)
        sq_distance_tile(part, centers, scratch.rows, scratch.q)
        _nearest(scratch.q, nearest, largest)
        _normalise_tile(part.shape[0], scratch, alpha)
        _entropy(scratch.q, largest, disorder)
        for lane in range(min(LANES, part.shape[0])):
            if not scratch.mass[lane] > 0:  # NaN: the row belongs to no cluster and adds to none
                nearest[lane] = -1
                for j in range(scratch.q.shape[0]):
                    scratch.q[j, lane] = x.dtype.type(0)
            labels[start + lane] = nearest[lane]
            confidence[start + lane] = largest[lane]
            entropy[start + lane] = disorder[lane]
        add_frequency(scratch.q, frequency)


@jit(inner=True)
def _nearest(sq_dists, nearest, smallest):
    """Index of the smallest entry over centers; of equals the lowest."""
    for lane in range(LANES):
        nearest[lane] = 0
        smallest[lane] = sq_dists[0, lane]
    for j in range(1, sq_dists.shape[0]):
        for lane in range(LANES):
            closer = sq_dists[j, lane] < smallest[lane]
            nearest[lane] = j if closer else nearest[lane]
            smallest[lane] = sq_dists[j, lane] if closer else smallest[lane]


@jit(inner=True, reassociate=True)
def _entropy(q, largest, entropy):
    """Largest q and -sum q ln q of each lane."""
    zero, ln2 = q.dtype.type(0), q.dtype.type(LN2)
    for lane in range(LANES):
        largest[lane] = q[0, lane]
        entropy[lane] = zero
    for j in range(q.shape[0]):
        for lane in range(LANES):
            value = q[j, lane]
            largest[lane] = max(largest[lane], value)
            entropy[lane] -= value * log2(value) * ln2


@jit(inner=True)
def assign_tile(x, centers, scratch, alpha):
    """scratch.q: soft assignment of up to 64 rows; zero in lanes without a row."""
    load_rows(x, centers, scratch.rows)
    sq_distance_tile(x, centers, scratch.rows, scratch.q)
    _normalise_tile(x.shape[0], scratch, alpha)


@jit(inner=True, reassociate=True)
def _normalise_tile(m, scratch, alpha):
    """Squared distances in scratch.q become soft assignments; fills mass and, for alpha != 1, slope."""
    q, slope, mass = scratch.q, scratch.slope, scratch.mass
    zero, one = q.dtype.type(0), q.dtype.type(1)
    largest = q.dtype.type(1e36) if q.itemsize == 4 else q.dtype.type(1e300)
    if alpha is None:
        for j in range(q.shape[0]):
            tile = q[j]
            for lane in range(LANES):
                tile[lane] = one / (one + min(tile[lane], largest))
    else:
        _general_kernel(q, slope, q.dtype.type(1.0 / alpha), q.dtype.type((alpha + 1.0) / 2.0), largest)
    sum_centers(q, mass)
    factor = np.empty(LANES, q.dtype)
    for lane in range(LANES):
        factor[lane] = one / mass[lane] if lane < m else zero
    for j in range(q.shape[0]):
        tile = q[j]
        for lane in range(LANES):
            tile[lane] *= factor[lane]


@jit(inner=True, reassociate=True)
def _general_kernel(q, slope, inverse_alpha, exponent, largest):
    """(1 + d^2/alpha)^-exponent relative to the nearest center's, so that nothing underflows."""
    zero, one = q.dtype.type(0), q.dtype.type(1)
    steepest = np.full(LANES, zero, q.dtype)
    for j in range(q.shape[0]):
        for lane in range(LANES):
            value = one / (one + min(q[j, lane] * inverse_alpha, largest))
            slope[j, lane] = value
            steepest[lane] = max(steepest[lane], value)
    for j in range(q.shape[0]):
        for lane in range(LANES):
            q[j, lane] = power(slope[j, lane] / steepest[lane], exponent)


@jit(inner=True)
def sum_centers(tile, total):
    """Sum over centers of each lane, compensated: an error common to a row's q would not cancel in p - q."""
    lost = np.zeros(LANES, tile.dtype)
    for lane in range(LANES):
        total[lane] = tile.dtype.type(0)
    for j in range(tile.shape[0]):
        for lane in range(LANES):
            add_compensated(total, lost, lane, tile[j, lane])


@jit(reassociate=True)
def column_sums(q, total):
    """Sum over rows of q (m, k) into total (k,) float64."""
    total[:] = 0.0
    for i in range(q.shape[0]):
        for j in range(q.shape[1]):
            total[j] += q[i, j]


@jit(reassociate=True)
def target_block(q, gain, exponent, p):
    """p ~ q^exponent * gain, rows summing to one; q and p (m, k)."""
    zero, one = q.dtype.type(0), q.dtype.type(1)
    for i in range(q.shape[0]):
        largest = q[i, 0]
        for j in range(q.shape[1]):
            largest = max(largest, q[i, j])
        scale = one / largest
        total = zero
        for j in range(q.shape[1]):
            p[i, j] = raised(q[i, j] * scale, exponent) * gain[j]
        for j in range(q.shape[1]):
            total += p[i, j]
        inverse = one / total
        for j in range(q.shape[1]):
            p[i, j] *= inverse


@jit
def assign_backward_block(x, centers, scratch, alpha, grad_q, grad_x, grad_centers):
    """Gradients of sum(grad_q * q) for rows x; grad_q (m, k). A gradient of no rows is not wanted."""
    weights = np.empty(scratch.q.shape, x.dtype)
    for start in range(0, x.shape[0], LANES):
        stop = start + LANES
        part = x[start:]
        assign_tile(part, centers, scratch, alpha)
        transpose(grad_q[start:stop], weights)
        _assign_weights(scratch, alpha, weights)
        gradient_tile(part, centers, scratch.rows, weights, scratch.gradient, grad_x[start:], grad_centers)


@jit(inner=True)
def transpose(rows, columns):
    """rows (m, k) into columns (k, 64); zero in lanes without a row."""
    m = rows.shape[0]
    for lane in range(LANES):
        for j in range(columns.shape[0]):
            columns[j, lane] = rows[lane, j] if lane < m else rows.dtype.type(0)


@jit(inner=True)
def _assign_weights(scratch, alpha, weights):
    """Output gradients in weights become those of d^2/2: -(alpha+1)/alpha slope q (g - sum q g)."""
    q = scratch.q
    factor = q.dtype.type(-steepness(alpha))
    expected = np.zeros(LANES, q.dtype)
    lost = np.zeros(LANES, q.dtype)
    for j in range(q.shape[0]):
        for lane in range(LANES):
            add_compensated(expected, lost, lane, q[j, lane] * weights[j, lane])
    for j in range(q.shape[0]):
        for lane in range(LANES):
            slope = slope_of(scratch, alpha, j, lane)
            weights[j, lane] = factor * q[j, lane] * slope * (weights[j, lane] - expected[lane])


@jit
def subtract_and_clear(partial, total):
    """total (k, d) float64 -= partial (k, padded); partial becomes zero."""
    for j in range(total.shape[0]):
        for d in range(total.shape[1]):
            total[j, d] -= partial[j, d]
            partial[j, d] = partial.dtype.type(0)
