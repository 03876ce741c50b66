"""Compiled passes over tiles (k, 64) of scores or squared distances, once the potentials are known."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastdc.kernels import _tile
from fastdc.kernels._math import exp2_affine, multiply_add
from fastdc.kernels._numba import jit
from fastdc.kernels._simd import gemm
from fastdc.kernels._tile import gradient_tile
from fastdc.kernels._vectors import LANES
from fastdc.kernels.sinkhorn.numba_swapped_tiles import (
    CHUNK,
    Softmax,
    exponentials,
    find_shifts,
    load_tile,
    set_shifts,
    some_are_small,
)


class Part(NamedTuple):
    """A tile and what its lanes keep."""

    tile: NDArray  # (k, 64)
    code: Softmax


class ScoreScratch(NamedTuple):
    """What one worker owns where the tiles are scores."""

    views: tuple[Part, ...]
    columns: NDArray  # (padded, 64)
    corner: NDArray  # as load_columns wants it
    no_shift: NDArray  # (padded,) zeros
    lanes: tuple[NDArray, NDArray]  # (64,) each
    labels: NDArray  # (64,) int32


class DistanceScratch(NamedTuple):
    """What one worker owns where the tiles are squared distances."""

    views: tuple[Part, ...]
    rows: _tile.Scratch
    lanes: tuple[NDArray, NDArray]  # (64,) each
    plan: NDArray  # (k, 64)
    gradient: NDArray  # (padded, 64)


def make_panels(prototypes: NDArray) -> NDArray:
    """(panels, d, 64): 64 prototypes in lanes, in the last panel followed by zeros."""
    k, d = prototypes.shape
    longer = np.zeros((-(-k // LANES) * LANES, d), prototypes.dtype)
    longer[:k] = prototypes
    return np.ascontiguousarray(longer.reshape(-1, LANES, d).transpose(0, 2, 1))


@jit
def fill_block(x, panels, scale, whole, tile, out, sums):
    """out (m, k): 2^(scores scale + whole) of rows x (m, d); sums (k,) over rows, float64."""
    m, k = out.shape
    zero = x.dtype.type(0)
    partial = np.empty(LANES, x.dtype)
    sums[:] = 0.0
    for start in range(0, m, LANES):
        rows = x[start : start + LANES]
        for panel in range(panels.shape[0]):
            columns = slice(panel * LANES, min((panel + 1) * LANES, k))
            gemm(rows, panels[panel], tile[: rows.shape[0]], False)
            partial[:] = zero
            for i in range(rows.shape[0]):
                _store_exponentials(tile[i], scale, whole, partial, out[start + i, columns])
            for j in range(columns.start, columns.stop):
                sums[j] += partial[j - columns.start]


@jit(inner=True)
def _store_exponentials(scores, scale, whole, partial, out):
    zero = scores.dtype.type(0)
    for j in range(out.size):
        value = exp2_affine(scores[j], scale, whole, zero)
        out[j] = value
        partial[j] += value


@jit
def assign_block(x, prototypes, scratch, potential, scale, bounds, q):
    """q (m, k): the softmax of each row of scores."""
    tile, code = scratch.views[0].tile, scratch.views[0].code
    for start in range(0, x.shape[0], LANES):
        rows = x[start : start + LANES]
        for attempt in range(2):
            load_tile(rows, prototypes, scratch, tile)
            if attempt == 0:
                set_shifts(bounds[start : start + LANES], code.shift)
            else:
                find_shifts(tile, potential, scale, code.shift)
            exponentials(tile, potential, scale, code, scratch.lanes[1])
            if not some_are_small(code.total):
                break
        for lane in range(rows.shape[0]):
            factor = x.dtype.type(1.0 / code.total[lane])
            for j in range(tile.shape[0]):
                q[start + lane, j] = tile[j, lane] * factor


@jit
def label_block(x, prototypes, scratch, potential, scale, labels, confidence):
    """labels (m,): of the largest code of each row, the first of equal ones; confidence (m,): that code."""
    tile, code = scratch.views[0].tile, scratch.views[0].code
    for start in range(0, x.shape[0], LANES):
        rows = x[start : start + LANES]
        load_tile(rows, prototypes, scratch, tile)
        find_shifts(tile, potential, scale, code.shift)
        _find_largest(tile, potential, scale, code.shift, scratch.labels, scratch.lanes[0])
        largest = scratch.lanes[0]
        for lane in range(LANES):
            code.reciprocal[lane] = largest[lane]
        exponentials(tile, potential, scale, code, scratch.lanes[1])
        for lane in range(rows.shape[0]):
            labels[start + lane] = scratch.labels[lane]
            confidence[start + lane] = np.exp2(code.reciprocal[lane]) / code.total[lane]


@jit(inner=True)
def _find_largest(tile, potential, scale, shift, labels, largest):
    labels[:] = 0
    largest[:] = tile.dtype.type(-np.inf)
    for j in range(tile.shape[0]):
        row, whole, part, label = tile[j], potential.whole[j], potential.part[j], np.int32(j)
        for lane in range(LANES):
            exponent = multiply_add(row[lane], scale, whole - shift[lane]) + part
            labels[lane] = label if exponent > largest[lane] else labels[lane]
            largest[lane] = exponent if exponent > largest[lane] else largest[lane]


@jit
def cost_block(x, centers, scratch, potential, scale, weight, grad_x, grad_centers):
    """Sum of plan times squared distance over the rows, whose masses are ``weight`` (m,).

    Gradients with the plan held; of no rows where not wanted. grad_centers (k, padded), less its sign, is added to.
    """
    distances, code = scratch.views[0].tile, scratch.views[0].code
    plan, mass = scratch.plan, scratch.lanes[0]
    needed = grad_x.shape[0] + grad_centers.shape[0] > 0
    total = 0.0
    for start in range(0, x.shape[0], LANES):
        rows = x[start : start + LANES]
        load_tile(rows, centers, scratch, distances)
        for j in range(plan.shape[0]):
            for lane in range(LANES):
                plan[j, lane] = distances[j, lane]
        find_shifts(plan, potential, scale, code.shift)
        exponentials(plan, potential, scale, code, scratch.lanes[1])
        mass[:] = x.dtype.type(0)
        for lane in range(rows.shape[0]):
            mass[lane] = weight[start + lane] / code.total[lane]
        total += _cost(plan, distances, mass)
        if needed:
            for j in range(plan.shape[0]):
                for lane in range(LANES):
                    plan[j, lane] *= x.dtype.type(2) * mass[lane]
            gradient_tile(rows, centers, scratch.rows, plan, scratch.gradient, grad_x[start:], grad_centers)
    return total


@jit(inner=True, reassociate=True)
def _cost(plan, distances, mass):
    total = 0.0
    for start in range(0, plan.shape[0], CHUNK):
        partial = plan.dtype.type(0)
        for j in range(start, min(start + CHUNK, plan.shape[0])):
            row, other = plan[j], distances[j]
            for lane in range(LANES):
                partial += row[lane] * mass[lane] * other[lane]
        total += partial
    return total
