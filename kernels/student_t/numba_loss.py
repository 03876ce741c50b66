"""Compiled blocks of the loss: KL(P || Q) and its gradients, P from one of three places. Tiles as in numba_tiles.py."""

from __future__ import annotations

import numpy as np

from fastdc.kernels._math import add_compensated, log2, power
from fastdc.kernels._numba import jit
from fastdc.kernels._tile import gradient_tile
from fastdc.kernels._vectors import LANES
from fastdc.kernels.student_t.numba_tiles import (
    LN2,
    add_frequency,
    assign_tile,
    raised,
    slope_of,
    steepness,
    sum_centers,
    transpose,
)


@jit
def own_loss_block(x, centers, scratch, alpha, sharpening, scale, grad_x, grad_centers, frequency):
    """Sum of KL(p_i || q_i) over rows x, float64, p from q itself; gradients times ``scale``.

    With a ``frequency`` (k,) float64 that is not empty, only that becomes the sum of q over the rows: the pass
    before the loss, in the same machine code.

    sharpening: (gain (k,), exponent). grad_x may have more rows than x, not yet written; grad_centers (k, padded)
    is added to. A gradient of no rows is not wanted.
    """
    loss = np.zeros(LANES, x.dtype)
    total = 0.0
    frequency[:] = 0.0
    for start in range(0, x.shape[0], LANES):
        part = x[start:]
        assign_tile(part, centers, scratch, alpha)
        if frequency.size > 0:
            add_frequency(scratch.q, frequency)
            continue
        _own_target(scratch, alpha, sharpening, scale, loss)
        total += _close_tile(part, centers, scratch, loss, grad_x[start:], grad_centers)
    return total


@jit
def frozen_loss_block(x, centers, scratch, alpha, frozen, sharpening, scale, grad_x, grad_centers):
    """The same with p from the refresh's rows and centers. frozen: (rows (m, d'), centers, scratch)."""
    rows, frozen_centers, frozen_scratch = frozen
    loss = np.zeros(LANES, x.dtype)
    total = 0.0
    for start in range(0, x.shape[0], LANES):
        part = x[start:]
        assign_tile(part, centers, scratch, alpha)
        assign_tile(rows[start:], frozen_centers, frozen_scratch, alpha)
        _sharpen(frozen_scratch.q, sharpening)
        _given_target(scratch, alpha, frozen_scratch.q, scale, loss)
        total += _close_tile(part, centers, scratch, loss, grad_x[start:], grad_centers)
    return total


@jit
def given_loss_block(x, centers, scratch, alpha, p, scale, grad_x, grad_centers):
    """The same with p (m, k) given."""
    tile = np.empty(scratch.q.shape, x.dtype)
    loss = np.zeros(LANES, x.dtype)
    total = 0.0
    for start in range(0, x.shape[0], LANES):
        part = x[start:]
        assign_tile(part, centers, scratch, alpha)
        transpose(p[start : start + LANES], tile)
        _given_target(scratch, alpha, tile, scale, loss)
        total += _close_tile(part, centers, scratch, loss, grad_x[start:], grad_centers)
    return total


@jit(inner=True)
def _close_tile(x, centers, scratch, loss, grad_x, grad_centers):
    """Gradients of the tile from the weights in scratch.q; its loss."""
    total = 0.0
    for lane in range(min(LANES, x.shape[0])):
        total += loss[lane]
    if grad_x.shape[0] > 0 or grad_centers.shape[0] > 0:
        gradient_tile(x, centers, scratch.rows, scratch.q, scratch.gradient, grad_x, grad_centers)
    return total


@jit(inline=True)
def _raise_once_less(value, exponent):
    return value if exponent is None else power(value, exponent - type(exponent)(1))


@jit(inner=True)
def _target_mass(q, gain, exponent, inverse):
    """1 / sum_j q^exponent gain of each lane; zero in lanes without a row."""
    zero, one = q.dtype.type(0), q.dtype.type(1)
    lost = np.zeros(LANES, q.dtype)
    for lane in range(LANES):
        inverse[lane] = zero
    for j in range(q.shape[0]):
        weight = gain[j]
        for lane in range(LANES):
            add_compensated(inverse, lost, lane, raised(q[j, lane], exponent) * weight)
    for lane in range(LANES):
        inverse[lane] = one / inverse[lane] if inverse[lane] != zero else zero


@jit(inner=True, reassociate=True)
def _sharpen(q, sharpening):
    """q becomes p ~ q^exponent gain in place."""
    gain, exponent = sharpening
    inverse = np.empty(LANES, q.dtype)
    _target_mass(q, gain, exponent, inverse)
    for j in range(q.shape[0]):
        weight = gain[j]
        for lane in range(LANES):
            q[j, lane] = raised(q[j, lane], exponent) * weight * inverse[lane]


@jit(inner=True, reassociate=True)
def _own_target(scratch, alpha, sharpening, scale, loss):
    """P from q itself. q in scratch becomes the weights of the gradient; loss of each lane."""
    gain, exponent = sharpening
    q = scratch.q
    zero, ln2 = q.dtype.type(0), q.dtype.type(LN2)
    factor = q.dtype.type(scale * steepness(alpha))
    inverse = np.empty(LANES, q.dtype)
    _target_mass(q, gain, exponent, inverse)
    for lane in range(LANES):
        loss[lane] = zero
    for j in range(q.shape[0]):
        tile, weight = q[j], gain[j]
        for lane in range(LANES):
            value = tile[lane]
            # p / q = q^(exponent - 1) gain / sum: one logarithm of a ratio near one, so that little cancels
            ratio = _raise_once_less(value, exponent) * weight * inverse[lane]
            p = ratio * value
            loss[lane] += p * log2(ratio) * ln2
            tile[lane] = factor * (p - value) * slope_of(scratch, alpha, j, lane)


@jit(inner=True, reassociate=True)
def _given_target(scratch, alpha, p, scale, loss):
    """P in a tile, its rows of any sum. q in scratch becomes the weights of the gradient."""
    q, mass = scratch.q, scratch.mass
    zero, ln2 = q.dtype.type(0), q.dtype.type(LN2)
    tiny = q.dtype.type(1e-38) if q.itemsize == 4 else q.dtype.type(1e-300)
    factor = q.dtype.type(scale * steepness(alpha))
    total = np.empty(LANES, q.dtype)
    sum_centers(p, total)
    for lane in range(LANES):
        loss[lane] = zero
    for j in range(q.shape[0]):
        tile = q[j]
        for lane in range(LANES):
            value, wanted = tile[lane], p[j, lane]
            loss[lane] += wanted * log2(wanted / max(value, tiny)) * ln2
            tile[lane] = factor * (wanted - total[lane] * value) * slope_of(scratch, alpha, j, lane)
    for lane in range(LANES):
        if not mass[lane] > zero:  # NaN: neither log2 nor max would say so
            loss[lane] = mass[lane]
