"""Compiled blocks of VaDE's loss. Tiles are (n_components, 64) and (padded features, 64): 64 rows in lanes.

With t = z - mean, u = mu - mean, e = mu - z, s2 = exp(log_var), p = exp(-log_vars) and w = s2 + e^2, a row's loss is

    sum_c gamma Q - logsumexp_c A - 1/2 sum_d (1 + log_var)
    A = log weight - 1/2 sum_d log_vars - 1/2 sum_d p t^2,   gamma = softmax(A)
    Q = sum_d p (w / 2 + e t)

since s2 + (mu - mean)^2 - (z - mean)^2 = w + 2 e t, and all that gamma does not weigh cancels: nothing large is
subtracted. With G = gamma (Q - sum gamma Q), the gradient through gamma (zero where it is detached), and
H = G - gamma:

    grad z = -sum_c G p t           grad mu = sum_c gamma p u           grad log_var = s2 / 2 sum_c gamma p - 1/2
    grad means = p sum_i (G t - gamma u)                                grad log weight = sum_i H
    grad log_vars = 1/2 (p sum_i (G t^2 - gamma (u^2 + s2)) - sum_i H)
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastdc.kernels._lanes import load_columns, store_columns
from fastdc.kernels._math import exp, multiply_add
from fastdc.kernels._numba import jit
from fastdc.kernels._sweeps import make_sweep
from fastdc.kernels._vectors import LANES

LOG_JOINT, QUOTIENT, Z, MU, GRAD_Z, GRAD_MU, GRAD_LOG_VAR = range(7)  # slots of sweeps
N_SLOTS = 7


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
    mu: NDArray  # (padded, 64)
    e: NDArray  # (padded, 64)
    half_w: NDArray  # (padded, 64): w / 2
    variance: NDArray  # (padded, 64): s2
    gamma: NDArray  # (k, 64): A, then gamma
    quotient: NDArray  # (k, 64): Q, then G
    lanes: NDArray  # (slots, 64)
    grads: NDArray  # (3, padded, 64)
    corner: NDArray  # as load_columns wants it
    zeros: NDArray  # (padded,)


class Sums(NamedTuple):
    """float64: of the loss, of H, of G t - gamma u, and of G t^2 - gamma (u^2 + s2)."""

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
    load_columns(rows.mu[start:], scratch.zeros, scratch.mu, scratch.corner)
    load_columns(rows.log_var[start:], scratch.zeros, scratch.variance, scratch.corner)
    infinite, half = scratch.z.dtype.type(np.inf), scratch.z.dtype.type(0.5)
    for d in range(rows.z.shape[1]):
        z, mu, e = scratch.z[d], scratch.mu[d], scratch.e[d]
        half_w, variance = scratch.half_w[d], scratch.variance[d]
        for lane in range(LANES):
            value = exp(variance[lane])
            variance[lane] = infinite if variance[lane] > largest_log_var else value
            e[lane] = mu[lane] - z[lane]
        for lane in range(LANES):
            half_w[lane] = half * multiply_add(e[lane], e[lane], variance[lane])


def _meet(v: Any, lines: list[Any], constants: list[Any], sums: list[Any]) -> tuple[dict[int, Any], list[Any]]:
    """Sums over features of p t^2 and of p (w / 2 + e t)."""
    (z, e, half_w, mean, p), (squares, quotient) = lines, sums
    t = v.builder.fsub(z, mean)
    return {}, [v.fma(v.builder.fmul(p, t), t, squares), v.fma(p, v.fma(e, t, half_w), quotient)]


def _differentiate(v: Any, lines: list[Any], constants: list[Any], sums: list[Any]) -> tuple[dict[int, Any], list[Any]]:
    """Sums over components of G p t, gamma p u and gamma p."""
    (gamma, slope, _, mean, p), (z, mu), (grad_z, grad_mu, weights) = lines, constants, sums
    t, weight = v.builder.fsub(z, mean), v.builder.fmul(gamma, p)
    of_z, of_mu = v.fma(v.builder.fmul(slope, p), t, grad_z), v.fma(weight, v.builder.fsub(mu, mean), grad_mu)
    return {}, [of_z, of_mu, v.builder.fadd(weight, weights)]


_sum_features = make_sweep(_meet, carried={LOG_JOINT: 0.0, QUOTIENT: 0.0}, numbers=True)
_sum_components = make_sweep(
    _differentiate, given=(Z, MU), carried={GRAD_Z: 0.0, GRAD_MU: 0.0, GRAD_LOG_VAR: 0.0}, numbers=True
)


@jit(inner=True)
def _joint_tile(components, n_features, scratch):
    """A into gamma, Q into quotient."""
    half, lanes = scratch.z.dtype.type(0.5), scratch.lanes
    means, precisions, log_norm = components
    for j in range(log_norm.size):
        first = j * n_features
        _sum_features(scratch.z, scratch.e, scratch.half_w, lanes, n_features, means, precisions, first, 1)
        for lane in range(LANES):
            scratch.gamma[j, lane] = log_norm[j] - half * lanes[LOG_JOINT, lane]
        scratch.quotient[j] = lanes[QUOTIENT]


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


@jit(inline=True, reassociate=True)
def _component_sums(mean, z, mu, variance, gamma, slope):
    """Sums over lanes of G t - gamma u and of G t^2 - gamma (u^2 + s2)."""
    number = z.dtype.type
    first, second = number(0), number(0)
    for lane in range(LANES):
        t, u = z[lane] - mean, mu[lane] - mean
        of_z, of_mu = slope[lane] * t, gamma[lane] * u
        first += of_z - of_mu
        second += of_z * t - of_mu * u - gamma[lane] * variance[lane]
    return first, second


@jit(inner=True)
def _add_component_sums(means, scratch, first, second):
    for j in range(means.shape[0]):
        gamma, slope = scratch.gamma[j], scratch.quotient[j]
        for d in range(means.shape[1]):
            a, b = _component_sums(means[j, d], scratch.z[d], scratch.mu[d], scratch.variance[d], gamma, slope)
            first[j, d] += a
            second[j, d] += b


@jit(inner=True)
def _row_gradients(components, n_features, scratch):
    """Of z, mu and log_var into the grads of the scratch."""
    half, lanes = scratch.z.dtype.type(0.5), scratch.lanes
    means, precisions, log_norm = components
    gamma, slope = scratch.gamma, scratch.quotient
    for d in range(n_features):
        lanes[Z], lanes[MU] = scratch.z[d], scratch.mu[d]
        _sum_components(gamma, slope, slope, lanes, log_norm.size, means, precisions, d, n_features)
        scratch.grads[1, d] = lanes[GRAD_MU]
        for lane in range(LANES):
            scratch.grads[0, d, lane] = -lanes[GRAD_Z, lane]
            scratch.grads[2, d, lane] = half * scratch.variance[d, lane] * lanes[GRAD_LOG_VAR, lane] - half
