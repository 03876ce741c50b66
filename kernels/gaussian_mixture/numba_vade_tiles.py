"""Compiled blocks of VaDE's loss. Tiles are (n_components, 64) and (padded features, 64): 64 rows in lanes.

With t = z - mean, e = mu - z, s2 = exp(log_var), p = exp(-log_vars) and w = s2 + e^2, a row's loss is

    sum_c gamma Q - logsumexp_c A - 1/2 sum_d (1 + log_var)
    A = log weight - 1/2 sum_d log_vars - 1/2 sum_d p t^2,   gamma = softmax(A)
    Q = sum_d p (w / 2 + e t)

since s2 + (mu - mean)^2 - (z - mean)^2 = w + 2 e t, and all that gamma does not weigh cancels: nothing large is
subtracted. With G = gamma (Q - sum gamma Q), the gradient through gamma (zero where it is detached), and
H = G - gamma:

    grad z = -sum_c G p t           grad mu = sum_c gamma p (t + e)     grad log_var = s2 / 2 sum_c gamma p - 1/2
    grad means = p sum_i (H t - gamma e)                                grad log weight = sum_i H
    grad log_vars = 1/2 (p sum_i (H t^2 - gamma (w + 2 e t)) - sum_i H)
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastdc.kernels._lanes import load_columns, store_columns
from fastdc.kernels._math import exp, multiply_add
from fastdc.kernels._numba import jit
from fastdc.kernels._vectors import LANES


class Components(NamedTuple):
    means: NDArray  # (k, d)
    precisions: NDArray  # (k, d): p
    log_norm: NDArray  # (k,): log weight - 1/2 sum of log_vars


class Rows(NamedTuple):
    """Of a block, or the gradients of one: each (m, d)."""

    z: NDArray
    mu: NDArray
    log_var: NDArray


class Scratch(NamedTuple):
    """What one worker owns."""

    z: NDArray  # (padded, 64)
    e: NDArray  # (padded, 64)
    half_w: NDArray  # (padded, 64): w / 2
    variance: NDArray  # (padded, 64): s2
    gamma: NDArray  # (k, 64): A, then gamma
    quotient: NDArray  # (k, 64): Q, then G
    lanes: NDArray  # (4, 64)
    grads: NDArray  # (3, padded, 64)
    corner: NDArray  # as load_columns wants it
    zeros: NDArray  # (padded,)


class Sums(NamedTuple):
    """float64: of the loss, of H, of H t - gamma e, and of H t^2 - gamma (w + 2 e t)."""

    loss: NDArray  # (1,)
    mass: NDArray  # (k,)
    first: NDArray  # (k, d), or of no rows where not wanted
    second: NDArray  # (k, d)


@jit
def loss_block(rows, components, scratch, largest_log_var, detached, grads, sums):
    """Adds what the rows are worth to the sums; gradients of z, mu and log_var into ``grads`` unless of no rows."""
    n_rows, n_features = rows.z.shape
    need_rows = grads.z.shape[0] + grads.mu.shape[0] + grads.log_var.shape[0] > 0
    for start in range(0, n_rows, LANES):
        used = min(LANES, n_rows - start)
        _load(rows, start, largest_log_var, scratch)
        _joint_tile(components, n_features, scratch)
        sums.loss[0] += _responsibilities(scratch, rows.log_var[start : start + used], used, detached)
        _add_masses(scratch, sums.mass)
        if sums.first.shape[0] > 0:
            _add_component_sums(components.means, scratch, sums.first, sums.second)
        if need_rows:
            _row_gradients(components, n_features, scratch)
            if grads.z.shape[0] > 0:
                store_columns(scratch.grads[0], used, grads.z[start:], scratch.corner)
            if grads.mu.shape[0] > 0:
                store_columns(scratch.grads[1], used, grads.mu[start:], scratch.corner)
            if grads.log_var.shape[0] > 0:
                store_columns(scratch.grads[2], used, grads.log_var[start:], scratch.corner)


@jit(inner=True)
def _load(rows, start, largest_log_var, scratch):
    load_columns(rows.z[start:], scratch.zeros, scratch.z, scratch.corner)
    load_columns(rows.mu[start:], scratch.zeros, scratch.e, scratch.corner)
    load_columns(rows.log_var[start:], scratch.zeros, scratch.variance, scratch.corner)
    infinite, half = scratch.z.dtype.type(np.inf), scratch.z.dtype.type(0.5)
    for d in range(rows.z.shape[1]):
        z, e, half_w, variance = scratch.z[d], scratch.e[d], scratch.half_w[d], scratch.variance[d]
        for lane in range(LANES):
            value = exp(variance[lane])
            variance[lane] = infinite if variance[lane] > largest_log_var else value
            e[lane] -= z[lane]
        for lane in range(LANES):
            half_w[lane] = half * multiply_add(e[lane], e[lane], variance[lane])


@jit(inner=True)
def _joint_tile(components, n_features, scratch):
    """A into gamma, Q into quotient."""
    half = scratch.z.dtype.type(0.5)
    for j in range(components.means.shape[0]):
        log_joint, quotient = scratch.gamma[j], scratch.quotient[j]
        for lane in range(LANES):
            log_joint[lane] = components.log_norm[j]
            quotient[lane] = 0
        for d in range(n_features):
            mean, p = components.means[j, d], components.precisions[j, d]
            z, e, half_w = scratch.z[d], scratch.e[d], scratch.half_w[d]
            for lane in range(LANES):
                t = z[lane] - mean
                log_joint[lane] = multiply_add(-half * p * t, t, log_joint[lane])
                quotient[lane] = multiply_add(p, multiply_add(e[lane], t, half_w[lane]), quotient[lane])


@jit(inner=True)
def _responsibilities(scratch, log_var, used, detached):
    """gamma and G (0 in lanes without a row) from A and Q; the sum of losses."""
    gamma, quotient = scratch.gamma, scratch.quotient
    largest, total, factor, mean = scratch.lanes[0], scratch.lanes[1], scratch.lanes[2], scratch.lanes[3]
    number = gamma.dtype.type
    for lane in range(LANES):
        largest[lane] = -np.inf
        total[lane] = 0
        mean[lane] = 0
    for j in range(gamma.shape[0]):
        for lane in range(LANES):
            largest[lane] = gamma[j, lane] if gamma[j, lane] > largest[lane] else largest[lane]
    for j in range(gamma.shape[0]):
        for lane in range(LANES):
            value = exp(gamma[j, lane] - largest[lane])
            gamma[j, lane] = value
            total[lane] += value
            mean[lane] = multiply_add(value, quotient[j, lane] if value > 0 else number(0), mean[lane])
    loss = 0.0
    for lane in range(LANES):
        factor[lane] = number(1) / total[lane] if lane < used else number(0)
        mean[lane] /= total[lane]
    for lane in range(used):
        loss += np.float64(mean[lane]) - np.float64(largest[lane]) - math.log(total[lane])
    for j in range(gamma.shape[0]):
        for lane in range(LANES):
            gamma[j, lane] *= factor[lane]
            slope = gamma[j, lane] * (quotient[j, lane] - mean[lane])
            quotient[j, lane] = number(0) if detached or gamma[j, lane] == 0 else slope
    return loss - 0.5 * (used * log_var.shape[1] + _sum_of(log_var))


@jit(inner=True, reassociate=True)
def _sum_of(rows):
    total = 0.0
    for i in range(rows.shape[0]):
        row = rows[i]
        for d in range(row.size):
            total += row[d]
    return total


@jit(inner=True, reassociate=True)
def _add_masses(scratch, mass):
    for j in range(mass.size):
        gamma, slope = scratch.gamma[j], scratch.quotient[j]
        total = gamma.dtype.type(0)
        for lane in range(LANES):
            total += slope[lane] - gamma[lane]
        mass[j] += total


@jit(inner=True, reassociate=True)
def _component_sums(mean, z, e, half_w, gamma, slope):
    """Sums over lanes of H t - gamma e and of H t^2 - gamma (w + 2 e t)."""
    number = z.dtype.type
    first, second = number(0), number(0)
    for lane in range(LANES):
        t = z[lane] - mean
        weight = slope[lane] - gamma[lane]
        first += weight * t - gamma[lane] * e[lane]
        second += weight * t * t - number(2) * gamma[lane] * (half_w[lane] + e[lane] * t)
    return first, second


@jit(inner=True)
def _add_component_sums(means, scratch, first, second):
    for j in range(means.shape[0]):
        gamma, slope = scratch.gamma[j], scratch.quotient[j]
        for d in range(means.shape[1]):
            a, b = _component_sums(means[j, d], scratch.z[d], scratch.e[d], scratch.half_w[d], gamma, slope)
            first[j, d] += a
            second[j, d] += b


@jit(inner=True)
def _row_gradients(components, n_features, scratch):
    """Of z, mu and log_var into the grads of the scratch."""
    half = scratch.z.dtype.type(0.5)
    for d in range(n_features):
        z, e, variance = scratch.z[d], scratch.e[d], scratch.variance[d]
        grad_z, grad_mu, grad_log_var = scratch.grads[0, d], scratch.grads[1, d], scratch.grads[2, d]
        for lane in range(LANES):
            grad_z[lane] = grad_mu[lane] = grad_log_var[lane] = 0
        for j in range(components.means.shape[0]):
            mean, p = components.means[j, d], components.precisions[j, d]
            gamma, slope = scratch.gamma[j], scratch.quotient[j]
            for lane in range(LANES):
                t = z[lane] - mean
                weight = gamma[lane] * p
                grad_z[lane] = multiply_add(-p * slope[lane], t, grad_z[lane])
                grad_mu[lane] = multiply_add(weight, t + e[lane], grad_mu[lane])
                grad_log_var[lane] += weight
        for lane in range(LANES):
            grad_log_var[lane] = half * variance[lane] * grad_log_var[lane] - half
